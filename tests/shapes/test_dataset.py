"""shapes: what is stored as truth is what is drawn and what is said."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.shapes.grammar import participle
from tvrkit.data.manifest import Manifest
from tvrkit.data.store import FrameStore
from tvrkit.shapes.captions import WORDS
from tvrkit.shapes.dataset import prepare_shapes
from tvrkit.shapes.render import render
from tvrkit.shapes.scenes import PRESETS, plan

pytestmark = pytest.mark.slow

SMOKE = PRESETS["smoke"]


def test_partial_captions_say_less_than_the_one_they_are_part_of(truth):
    counts = truth.captions.groupby("video_id").language.value_counts().unstack()
    assert counts.eq({"en": 4, "zh": 2}).all(axis=None)
    partial = truth.captions[truth.captions.partial_of.notna()]
    expected = (
        SMOKE.partial * (3 + 1) / (4 + 2)
    )  # all captions of a language but the first may be partial
    assert 0.7 * expected < len(partial) / len(truth.captions) <= 1.2 * expected
    for row in partial.itertuples():
        full = truth.captions.loc[row.partial_of]
        assert (full.video_id, full.language) == (row.video_id, row.language)
        assert set(row.mentioned) < set(full.mentioned)
    for row in truth.captions[truth.captions.partial_of.isna()].itertuples():
        assert set(row.mentioned) == {
            name for name, value in truth.factors.loc[row.video_id].items() if value
        }


def test_stored_frames_are_the_rendered_ones_and_informative_flags_are_right(root, truth):
    store = FrameStore(root / "frames.lmdb")
    for video in plan(SMOKE, 0)[::5]:
        clear = render(video.scene, [""] * SMOKE.frames, [*video.seed, 1])
        stored = store.read(video.video_id, range(store.count(video.video_id)))
        flags = truth.informative(video.video_id)
        assert stored.shape == clear.shape
        assert flags.dtype == bool
        gaps = np.abs(stored.astype(int) - clear).mean(axis=(1, 2, 3))
        assert ((gaps < 8) == flags).all()  # compression costs up to 5, another picture at least 10
        assert (~flags).sum() == round(SMOKE.distractors * SMOKE.frames) == 4


def test_attribute_words_are_words_of_the_caption(truth, captions):
    assert list(truth.captions.index) == list(captions.index)
    assert not captions[["video_id", "caption", "split"]].isna().any(axis=None)
    for caption_id, row in captions.iterrows():
        for start, end, factor in truth.attribute_words(caption_id):
            value = truth.factors.loc[row.video_id, factor]
            words = WORDS[row.language][factor][value]
            assert row.caption[start:end] in {*words, *map(participle, words)}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tags_are_the_words_of_everything_there_is_to_say(truth, captions, language):
    for video, rows in captions[captions.language == language].groupby("video_id"):
        first = f"{video}-{language}0"
        spans = truth.attribute_words(first)
        words = [rows.caption[first][start:end] for start, end, _ in spans]
        assert set(rows.tags) == {" ".join(words)}
        assert {factor for _, _, factor in spans} == {
            name for name, value in truth.factors.loc[video].items() if value
        }


def test_a_finished_data_set_is_left_alone_and_another_refused(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    prepare_shapes(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match=r"'seed': 1.*'seed': 0"):
        prepare_shapes(root, seed=1)
    with pytest.raises(ValueError, match=r"unknown preset 'huge': expected one of .*quick"):
        prepare_shapes(root, "huge")


def test_the_smoke_data_set_is_what_it_always_was(root):
    """One seed, the same ids, words and pixels on every machine: only so are runs comparable."""
    card = Manifest.open(root).card
    assert card["captions_hash"]["test"]["en"].startswith("0516055bdf99")
    assert card["captions_hash"]["train"]["zh"].startswith("2e8fbdaaa5b7")
    assert card["split_hash"]["test"].startswith("5e4282243b18")
    video = next(video for video in plan(SMOKE, 0) if video.scene.shape2)
    pixels = render(video.scene, video.distractors, [*video.seed, 1])
    assert hashlib.sha256(pixels).hexdigest().startswith("b1097721cf8d")


def content(root: Path) -> dict[str, bytes]:
    files = [*root.glob("*.jsonl"), *root.glob("truth/*"), *root.glob("videos/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_killed_and_run_again_is_the_same(root, tmp_path):
    again = tmp_path / "shapes-smoke"
    code = f"from tvrkit.shapes.dataset import prepare_shapes as make; make({str(again)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(again.glob("videos/*.mp4"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 20 <= len(list(again.glob("videos/*.mp4"))) < 112
    assert not (again / "card.json").exists()
    prepare_shapes(again)
    assert content(again) == content(root)
    ours, theirs = (FrameStore(folder / "frames.lmdb") for folder in (again, root))
    assert ours.video_ids() == theirs.video_ids()
    for video_id in ours.video_ids():
        assert (ours.read(video_id, range(16)) == theirs.read(video_id, range(16))).all()


def test_a_video_that_cannot_be_written_is_an_error_and_the_next_call_goes_on(tmp_path):
    in_the_way = tmp_path / "videos" / "train00000.part"
    in_the_way.mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        prepare_shapes(tmp_path, "smoke")
    in_the_way.rmdir()
    assert prepare_shapes(tmp_path, "smoke").card["counts"]["test"]["ok"] == 40
