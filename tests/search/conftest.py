"""A dozen videos of shapes, the embedded model, and their index: made once."""

import shutil

import numpy as np
import pytest
import simplejpeg

pytest.importorskip("lancedb", reason="search needs the extra `search`")

from tvrkit.data.decoders import DecodePool, FrameSettings
from tvrkit.search import index as indexes
from tvrkit.search.encoder import Encoder
from tvrkit.search.index import Index
from tvrkit.shapes.render import encode, render
from tvrkit.shapes.scenes import PRESETS, plan

EMBEDDED = (None, "tvrkit-tiny", "tvrkit")


def jpegs(path, count):
    """Frames of a video as JPEG files."""
    with DecodePool(1) as pool:
        return next(pool.run([path], FrameSettings(count)))[1]


def pictures(path, count):
    """(F, H, W, 3) of a video, as an index keeps them."""
    return [*map(simplejpeg.decode_jpeg, jpegs(path, count))]


@pytest.fixture(autouse=True)
def few_unrelated_queries(short_lists, monkeypatch):
    """Each build scores 80 of them, which takes longer than its videos: a test's own builds score
    two. `built` is made before, with all."""
    monkeypatch.setattr(indexes, "ASSETS", short_lists)


@pytest.fixture(scope="session")
def short_lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    for path in indexes.ASSETS.glob("unrelated_*.txt"):
        (folder / path.name).write_text(path.read_text("utf-8").splitlines()[0], "utf-8")
    return folder


@pytest.fixture(scope="session")
def encoder():
    return Encoder(*EMBEDDED)


@pytest.fixture(scope="session")
def scenes():
    return plan(PRESETS["smoke"], 0)[:12]


@pytest.fixture(scope="session")
def films(scenes):
    """Frames (16, 64, 64, 3) of each scene."""
    return [render(v.scene, v.distractors, [*v.seed, 1]) for v in scenes]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, scenes, films):
    folder = tmp_path_factory.mktemp("corpus")
    for video, frames in zip(scenes, films, strict=True):
        encode(frames, folder / f"{video.video_id}.mp4", 8)
    return folder


@pytest.fixture(scope="session")
def built(corpus, tmp_path_factory, encoder):
    """The folder of a finished index; not to be written to."""
    place = tmp_path_factory.mktemp("index")
    Index.build(corpus, place, encoder)
    return place


@pytest.fixture
def index(built, encoder):
    return Index.open(built, encoder)


@pytest.fixture
def videos(tmp_path, corpus):
    """A folder of four of the videos, to be changed."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(corpus.iterdir())[:4]:
        shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope="session")
def long_video(tmp_path_factory, films):
    """50 s: a grey shot of 20 s with a moving square, then a red one of 30 s."""
    frames = np.full((400, 64, 64, 3), 128, np.uint8)
    frames[160:] = (200, 20, 20)
    for i, frame in enumerate(frames):
        frame[20:40, i % 40 : i % 40 + 20] = 255
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    encode(frames, path, 8)
    return path
