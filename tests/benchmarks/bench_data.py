"""Videos extracted and training items read per second, on videos like those of shapes (16 frames of
64 x 64)."""

from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest

from tvrkit.data import extract as frames
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.loader import train_loader
from tvrkit.data.manifest import write
from tvrkit.data.preprocessing import Preprocessing
from tvrkit.settings import DataConfig, EvalConfig, TrainConfig

VIDEOS = 128


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for number in range(VIDEOS):
        pictures = np.repeat(
            np.repeat(rng.integers(256, size=(16, 8, 8, 3), dtype=np.uint8), 8, 1), 8, 2
        )
        with av.open(str(folder / f"{number:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = 64
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
    return frames.find_videos(folder)


@pytest.mark.benchmark(group=f"extraction of {VIDEOS} videos, 2 workers")
def bench_extraction(benchmark, videos, tmp_path):
    stores = iter(range(1000))
    rows = benchmark.pedantic(
        lambda: frames.extract(videos, tmp_path / str(next(stores)), FrameSettings(8)), rounds=2
    )
    assert (rows["frames"] == 8).all()


@pytest.mark.parametrize("augmentation", [False, "hmmc", "randaugment"])
@pytest.mark.benchmark(group=f"one epoch over {VIDEOS} videos of 8 frames, no worker")
def bench_loader(benchmark, videos, tmp_path, augmentation):
    from open_clip import SimpleTokenizer  # it can be imported after tvrkit only

    rows = frames.extract(videos, tmp_path / "frames.lmdb", FrameSettings(8))
    captions = [
        {
            "caption_id": name,
            "video_id": name,
            "caption": "a red ball",
            "language": "en",
            "split": "train",
        }
        for name in videos
    ]
    manifest = write(tmp_path, pd.DataFrame(captions), rows.assign(split="train"), {})
    config = SimpleNamespace(
        data=DataConfig(prepared="bench", augmentation=augmentation),
        train=TrainConfig(batch_size=64, workers=0),
        eval=EvalConfig(),
    )
    backbone = SimpleNamespace(
        preprocessing=Preprocessing(64, (0.5,) * 3, (0.5,) * 3), tokenizer=SimpleTokenizer()
    )
    loader = train_loader(manifest.split("train"), config, backbone, seed=0)
    batches = benchmark.pedantic(lambda: list(loader), rounds=3, warmup_rounds=1)
    assert sum(map(len, batches)) == VIDEOS
