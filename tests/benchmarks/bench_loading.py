"""Clips of 12 frames at 224 pixels a second, from the frame store to a batch, beside what released
loaders do: seek to each second of the file with OpenCV (which is installed for this alone).

The videos are of 320 x 240 pixels and 12 s at 25 frames a second, as most of MSR-VTT's are; the
store holds a frame a second, short side 224.
"""

from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest
import torch

from tvrkit.data import extract
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.loader import train_loader
from tvrkit.data.manifest import write
from tvrkit.data.preprocessing import Preprocessing
from tvrkit.settings import DataConfig, EvalConfig, TrainConfig

VIDEOS, SECONDS, FPS, SIZE = 32, 12, 25, 224
CLIP = Preprocessing(SIZE, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Blurred noise that moves: about as hard to code as a picture of the world."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for number in range(VIDEOS):
        coarse = torch.from_numpy(rng.random((1, 3, 40, 60), np.float32))
        wall = torch.nn.functional.interpolate(coarse, (400, 600), mode="bicubic")[0].clamp(0, 1)
        wall = (255 * wall).byte().permute(1, 2, 0).numpy()
        with av.open(str(folder / f"{number:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height = 320, 240
            for step in range(SECONDS * FPS):
                y, x = (round(size * (0.5 + 0.4 * np.sin(step / 40))) for size in (150, 270))
                picture = np.ascontiguousarray(wall[y : y + 240, x : x + 320])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
    return extract.find_videos(folder)


@pytest.fixture(scope="module")
def split(videos, tmp_path_factory):
    """The training split of their store."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = extract.extract(videos, folder / "frames.lmdb", FrameSettings(SECONDS, SIZE))
    shared = {"caption": "a red ball", "language": "en", "split": "train"}
    captions = [{"caption_id": name, "video_id": name, **shared} for name in videos]
    return write(folder, pd.DataFrame(captions), rows.assign(split="train"), {}).split("train")


def note_rate(benchmark, clips):
    if benchmark.stats:  # none where benchmarks are switched off
        benchmark.extra_info["clips a second"] = clips / benchmark.stats.stats.median


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augmentation", [False, "hmmc", "randaugment"])
@pytest.mark.benchmark(group=f"{VIDEOS} clips of {SECONDS} frames at {SIZE} pixels")
def bench_store(benchmark, split, workers, augmentation):
    from open_clip import SimpleTokenizer  # it can be imported after tvrkit only

    config = SimpleNamespace(
        data=DataConfig(prepared="bench", max_frames=SECONDS, augmentation=augmentation),
        train=TrainConfig(batch_size=8, workers=workers),
        eval=EvalConfig(),
    )
    backbone = SimpleNamespace(preprocessing=CLIP, tokenizer=SimpleTokenizer())
    loader = train_loader(split, config, backbone, seed=0, tagged=False)
    count = lambda: sum(map(len, loader))  # noqa: E731
    assert benchmark.pedantic(count, rounds=5, warmup_rounds=1) == VIDEOS
    note_rate(benchmark, VIDEOS)


@pytest.mark.benchmark(group=f"{VIDEOS} clips of {SECONDS} frames at {SIZE} pixels")
def bench_released_way(benchmark, videos):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is no dependency of the kit")

    def clip(path):
        video, frames = cv2.VideoCapture(str(path)), []
        fps = video.get(cv2.CAP_PROP_FPS)
        for second in range(SECONDS):
            video.set(cv2.CAP_PROP_POS_FRAMES, second * fps)
            picture = cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB)
            frames.append(CLIP.fit(torch.from_numpy(picture).permute(2, 0, 1)[None]))
        return torch.cat(frames)

    some = list(videos.values())[:4]
    shapes = benchmark.pedantic(lambda: [clip(path).shape for path in some], rounds=2)
    assert shapes == [(SECONDS, 3, SIZE, SIZE)] * len(some)
    note_rate(benchmark, len(some))
