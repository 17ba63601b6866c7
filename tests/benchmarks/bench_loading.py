"""Clips of 12 frames at 224 pixels a second, from the frame store to a batch, beside what released
loaders do: seek to each second of the file with OpenCV (which is installed for this alone); and
videos a second, from files to the store.

The videos are of 320 x 240 pixels and 12 s at 25 frames a second, as most of MSR-VTT's are; the
store holds a frame a second, short side 224.
"""

import multiprocessing
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

VIDEOS, COPIES, CAPTIONS, SECONDS, FPS, SIZE = 32, 6, 4, 12, 25, 224
WHAT = f"{VIDEOS} clips of {SECONDS} frames at {SIZE} pixels"
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
    rows = extract.extract(
        videos, folder / "frames.lmdb", FrameSettings(SECONDS, SIZE, chroma="420")
    )
    shared = {"caption": "a red ball", "language": "en", "split": "train"}
    captions = [
        {"caption_id": f"{name} {number}", "video_id": name, **shared}
        for name in videos
        for number in range(CAPTIONS)
    ]
    return write(folder, pd.DataFrame(captions), rows.assign(split="train"), {}).split("train")


@pytest.fixture
def read(split):
    """`read(augmentation, workers)` goes through the split as training does."""
    from open_clip import SimpleTokenizer  # it can be imported after tvrkit only

    torch.set_num_threads(1)  # as in a worker

    def prepare(augmentation=False, workers=0, captions="one"):
        sides = {"max_frames": SECONDS, "augmentation": augmentation, "captions": captions}
        config = SimpleNamespace(
            data=DataConfig(prepared="bench", **sides),
            train=TrainConfig(batch_size=8, workers=workers),
            eval=EvalConfig(),
        )
        backbone = SimpleNamespace(preprocessing=CLIP, tokenizer=SimpleTokenizer())
        loader = train_loader(split, config, backbone, seed=0, tagged=False)
        return lambda: sum(map(len, loader))

    return prepare


def clip_as_released(cv2, path):
    """Seek to each second, decode, resize, crop."""
    video, frames = cv2.VideoCapture(str(path)), []
    fps = video.get(cv2.CAP_PROP_FPS)
    for second in range(SECONDS):
        video.set(cv2.CAP_PROP_POS_FRAMES, second * fps)
        picture = cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB)
        frames.append(CLIP.fit(torch.from_numpy(picture).permute(2, 0, 1)[None]))
    return torch.cat(frames)


def bench_store(against, videos, read):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is no dependency of the kit")
    some = list(videos.values())[:4]
    plain = lambda: [clip_as_released(cv2, path).shape for path in some]  # noqa: E731
    shapes, count = against(
        plain, read(), f"{WHAT} from the store, against OpenCV", rounds=3, part=VIDEOS / len(some)
    )
    assert (shapes, count) == ([(SECONDS, 3, SIZE, SIZE)] * len(some), VIDEOS)


@pytest.mark.parametrize("augmentation", ["hmmc", "randaugment"])
def bench_augmentation(against, read, augmentation):
    against(read(), read(augmentation), f"{WHAT} under {augmentation}, against unchanged", rounds=3)


@pytest.mark.parametrize("workers", [0, 2])
def bench_workers(benchmark, note_rate, read, workers):
    clips, go = VIDEOS * CAPTIONS, read(workers=workers, captions="all")
    assert benchmark.pedantic(go, rounds=5, warmup_rounds=1) == clips
    note_rate(f"Clips from store to batch, {workers} workers", clips)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def bench_extraction(benchmark, note_rate, videos, tmp_path, decoder):
    files = {f"{name}-{copy}": path for copy in range(COPIES) for name, path in videos.items()}
    stores, settings = iter("123"), FrameSettings(SECONDS, SIZE, chroma="420", decoder=decoder)
    rows = benchmark.pedantic(
        lambda: extract.extract(files, tmp_path / next(stores), settings), rounds=3
    )
    assert (rows["frames"] == SECONDS).all()
    by = ", ".join(sorted(set(rows["decoder"])))
    note_rate(f"Videos into a store, 2 workers, by {by}", len(files))


def decode(path):
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def bench_decoding(benchmark, note_rate, videos):
    paths = [*videos.values()] * COPIES
    with multiprocessing.get_context("fork").Pool(2) as pool:
        frames = benchmark.pedantic(lambda: sum(pool.imap_unordered(decode, paths)), rounds=3)
    assert frames == len(paths) * SECONDS * FPS
    note_rate("Their frames decoded and nothing else, 2 processes: videos", len(paths))
