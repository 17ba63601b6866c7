"""shapes: what is stored as truth is what is drawn and what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tvrkit.data.decoders import FrameSettings, read_frames
from tvrkit.data.store import FrameStore
from tvrkit.shapes import scenes as shapes
from tvrkit.shapes.captions import WORDS, mention, tell
from tvrkit.shapes.render import (
    BACKGROUNDS,
    COLOURS,
    FACTORS,
    MOTIONS,
    PLACES,
    REACH,
    SIDE,
    VALUES,
    Scene,
    differing,
    encode,
    neighbours,
    render,
    render_still,
)
from tvrkit.shapes.scenes import (
    PRESETS,
    Truth,
    plan,
    prepare,
    random_scene,
    sample_captions,
    stills,
)

SMOKE = PRESETS["smoke"]
CALM = Scene("circle", "red", "small", "centre", "still", "plain")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    prepare(folder, "smoke")
    return folder


@pytest.fixture(scope="module")
def truth(root) -> Truth:
    return Truth.open(root)


@pytest.fixture(scope="module")
def captions(root) -> pd.DataFrame:
    lines = (root / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines]).set_index("caption_id")


def scene_of(truth: Truth, video_id: str) -> Scene:
    return Scene(**truth.factors.loc[video_id])


# Scenes ---------------------------------------------------------------------------------


def test_one_seed_one_plan():
    assert plan(SMOKE, 3) == plan(SMOKE, 3)
    assert plan(SMOKE, 3) != plan(SMOKE, 4)


def test_splits_are_disjoint_in_meaning_and_as_large_as_said():
    videos = plan(PRESETS["quick"], 0)
    scenes = {
        name: [video.scene for video in videos if video.split == name] for name in shapes.SPLITS
    }
    assert {name: len(found) for name, found in scenes.items()} == {
        "train": 2000,
        "val": 200,
        "test": 500,
    }
    train, val, test = map(set, scenes.values())
    assert not train & val
    assert not train & test
    assert not val & test
    originals = [video.scene for video in videos if video.duplicate_of is None]
    assert len(set(originals)) == len(originals)
    assert all(video.scene.valid() for video in videos)


def test_duplicates_mean_the_same_and_look_different():
    videos = {video.video_id: video for video in plan(SMOKE, 0)}
    copies = [video for video in videos.values() if video.duplicate_of]
    assert len(copies) == sum(round(SMOKE.duplicates * count) for count in (48, 24, 40))
    for copy in copies:
        original = videos[copy.duplicate_of]
        assert (copy.scene, copy.split, copy.family) == (
            original.scene,
            original.split,
            original.family,
        )
        clear = [""] * SMOKE.frames
        one, other = (render(video.scene, clear, [*video.seed, 1]) for video in (copy, original))
        assert np.abs(one.astype(int) - other).mean() > 3


def test_families_differ_in_exactly_one_factor():
    videos = plan(PRESETS["quick"], 1)
    scenes = {video.video_id: video.scene for video in videos}
    followers = [
        video for video in videos if video.family != video.video_id and not video.duplicate_of
    ]
    share = sum(video.split == "test" for video in followers) / 500
    expected = PRESETS["quick"].families * 4 / 5  # of the five of a family, four follow the first
    assert 0.6 * expected < share < 1.4 * expected
    kinds = set()
    for video in followers:
        kinds.update(names := differing(video.scene, scenes[video.family]))
        assert len(names) == 1
    assert kinds == {*FACTORS, "order"}


def test_order_is_one_factor():
    first = replace(CALM, motion="right", then="up")
    assert differing(first, replace(CALM, motion="up", then="right")) == ["order"]
    assert differing(first, replace(CALM, motion="up", then="left")) == ["motion", "then"]
    assert differing(first, replace(first, size="large")) == ["size"]
    assert replace(first, motion="up", then="right") in neighbours(first, np.random.default_rng(0))


@pytest.mark.parametrize(
    "change",
    [
        {"place": "left", "motion": "left"},
        {"motion": "right", "then": "right"},
        {"place": "top", "motion": "bounce"},
        {"motion": "up", "then": "bounce"},
        {"shape2": "circle", "colour2": "red", "motion2": "appears"},
        {"shape2": "star", "colour2": "red", "motion2": "still"},
        {"motion": "up", "then": "down", "shape2": "star", "colour2": "red", "motion2": "vanishes"},
    ],
)
def test_scenes_that_cannot_be_filmed_or_told_are_not_valid(change):
    assert CALM.valid()
    assert not replace(CALM, **change).valid()


# Pixels ---------------------------------------------------------------------------------


def centre_of(frame: np.ndarray, colour: str) -> tuple[float, float, int]:
    """Column, row and number of the pixels that have a colour."""
    rows, columns = np.nonzero(np.abs(frame.astype(int) - COLOURS[colour]).max(axis=-1) < 45)
    return (columns.mean(), rows.mean(), len(rows)) if len(rows) else (np.nan, np.nan, 0)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", PLACES)
def test_colour_place_and_size_are_seen(colour, place):
    for number, background in enumerate(BACKGROUNDS):
        scene = replace(CALM, colour=colour, place=place, background=background)
        x, y, small = centre_of(render_still(scene, [number]), colour)
        across, down = PLACES[place]
        assert abs(x - SIDE / 2 - REACH * across) < 5
        assert abs(y - SIDE / 2 - REACH * down) < 5
        assert (
            centre_of(render_still(replace(scene, size="large"), [number]), colour)[2]
            > 2 * small
            > 80
        )


def test_every_shape_looks_different():
    faces = [
        render_still(replace(CALM, shape=shape, size="large"), [1]).astype(int)
        for shape in VALUES["shape"]
    ]
    gaps = [(np.abs(a - b).max(axis=-1) > 60).sum() for i, a in enumerate(faces) for b in faces[:i]]
    assert min(gaps) > 50  # pixels


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_is_seen_in_every_second_frame(motion):
    frames = render(replace(CALM, motion=motion), [""] * 16, [5])[::2]
    x, y, size = np.array([centre_of(frame, "red") for frame in frames]).T
    wide, high, grown = np.ptp(x), np.ptp(y), size[-1] / size[0]
    expected = {
        "left": x[-1] - x[0] < -14 and high < 2,
        "right": x[-1] - x[0] > 14 and high < 2,
        "up": y[-1] - y[0] < -14 and wide < 2,
        "down": y[-1] - y[0] > 14 and wide < 2,
        "orbit": wide > 14 and high > 14,
        "still": wide < 1 and high < 1 and abs(grown - 1) < 0.1,
        "shake": 4 < wide < 12 and high < 1 and (np.diff(np.sign(np.diff(x))) != 0).sum() >= 3,
        "bounce": high > 6 and wide < 1 and (np.diff(np.sign(np.diff(y))) != 0).sum() >= 3,
        "grow": wide < 2 and grown > 2,
        "shrink": wide < 2 and grown < 0.5,
    }
    assert [name for name, seen in expected.items() if seen] == [motion]


def test_second_event_and_second_object_come_in_time():
    turning = replace(
        CALM, motion="right", then="up", shape2="star", colour2="cyan", motion2="still"
    )
    frames = render(turning, [""] * 16, [2])
    x, y, _ = np.array([centre_of(frame, "red") for frame in frames]).T
    assert x[7] - x[0] > 14 > 2 > abs(y[7] - y[0])
    assert y[8] - y[15] > 14 > 2 > abs(x[15] - x[8])
    for motion2, halves in (("still", (1, 1)), ("appears", (0, 1)), ("vanishes", (1, 0))):
        frames = render(replace(turning, then="", motion2=motion2), [""] * 16, [2])
        seen = [centre_of(frame, "cyan")[2] > 20 for frame in frames]
        assert seen == [bool(halves[0])] * 8 + [bool(halves[1])] * 8


def test_encoding_is_deterministic_and_close(tmp_path):
    frames = render(replace(CALM, motion="orbit"), [""] * 12 + ["noise"] * 4, [7])
    for name in ("a", "b"):
        encode(frames, tmp_path / f"{name}.mp4", 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    decoded = read_frames(tmp_path / "a.mp4", FrameSettings(16))
    assert decoded.shape == (16, SIDE, SIDE, 3)
    assert np.abs(decoded[:12].astype(int) - frames[:12]).mean() < 5


# Captions ---------------------------------------------------------------------------------


def test_the_words_cover_the_values_and_are_unambiguous():
    for words in WORDS.values():
        assert {factor: set(table) for factor, table in words.items()} == {
            factor: set(values) for factor, values in VALUES.items()
        }
        for table in words.values():
            flat = [word for synonyms in table.values() for word in synonyms]
            assert len(flat) == len(set(flat))


def participle(phrase: str) -> str:
    verb, _, rest = phrase.partition(" ")
    return (verb[:-2] if verb.endswith("es") else verb[:-1]) + "ing" + (rest and " " + rest)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_attribute_span_is_a_word_for_what_is_true(language):
    rng = np.random.default_rng(0)
    for _ in range(1500):
        scene = random_scene(PRESETS["hard"], rng)
        mentioned = mention(scene, rng.choice([0.0, 0.5, 0.9]), rng)
        text, spans = tell(scene, mentioned, language, 0.5, rng)
        assert {factor for _, _, factor in spans} == set(mentioned)
        assert len(spans) == len(mentioned) > 0
        rest = text
        for start, end, factor in sorted(spans, reverse=True):
            words = WORDS[language][factor][vars(scene)[factor]]
            allowed = {*words} | (
                {participle(word) for word in words} if factor in ("motion", "then") else set()
            )
            assert text[start:end] in allowed
            rest = rest[:start] + "_" + rest[end:]
        for factor in (
            "shape",
            "colour",
            "background",
            "motion",
        ):  # and nothing is said outside the spans
            spoken = [word for synonyms in WORDS[language][factor].values() for word in synonyms]
            assert not [word for word in spoken if word in rest.replace("coloured", "")]
        assert text == text.strip()
        assert "  " not in text
        assert " ," not in text


def test_english_captions_fit_the_tokenizer():
    captions = sample_captions(3000, 1)
    assert max(len(text.replace(",", " ,").split()) for text in captions[::2]) <= 30
    assert len(set(captions)) > 2800
    assert all(text.isascii() for text in captions[::2])
    assert not any(text.isascii() for text in captions[1::2])


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


def test_stills_show_and_tell_one_frame():
    images, captions = stills(30, 0)
    assert images.shape == (30, SIDE, SIDE, 3)
    assert images.dtype == np.uint8
    again, same = stills(10, 0)
    assert (again == images[:10]).all()
    assert same == captions[:10]
    moving = [word for table in WORDS["en"]["motion"].values() for word in table]
    moving += [participle(word) for word in moving]
    moving += [word for table in WORDS["zh"]["motion"].values() for word in table]
    for told in captions:
        english = [text for text in told if text.isascii()]
        assert 1 <= len(english) <= 3
        assert 1 <= len(told) - len(english) <= 3
        assert told == english + told[len(english) :]
        assert not [word for word in moving for text in told if word in text]


# Truth ---------------------------------------------------------------------------------


def naive_differing(a: dict, b: dict) -> int:
    count = sum(a[factor] != b[factor] for factor in FACTORS)
    if a["motion"] != b["motion"] and a["motion"] == b["then"] and a["then"] == b["motion"]:
        count -= 1
    return count


def naive_relevance(mentioned: list[str], own: dict, video: dict) -> float:
    straight = crossed = 0
    exchanged = {f: video[f + "2"] for f in ("shape", "colour", "motion")}
    exchanged |= {f + "2": video[f] for f in ("shape", "colour", "motion")} | {
        "background": video["background"]
    }
    for factor in mentioned:
        if factor == "motion" and "then" not in mentioned:
            straight += own["motion"] in (video["motion"], video["then"])
        else:
            straight += own[factor] == video[factor]
        crossed += own[factor] == exchanged.get(factor)
    return max(straight, crossed) / len(mentioned)


def test_differing_factors_and_relevance_equal_the_loops(truth):
    caption_ids, video_ids = list(truth.captions.index[::3]), list(truth.videos.index[::-2])
    scenes = truth.factors.to_dict("index")
    differ, relevant = (
        table(caption_ids, video_ids) for table in (truth.differing_factors, truth.relevance)
    )
    assert differ.shape == relevant.shape == (len(caption_ids), len(video_ids))
    for i, caption_id in enumerate(caption_ids):
        caption = truth.captions.loc[caption_id]
        own = scenes[caption.video_id]
        for j, video_id in enumerate(video_ids):
            assert differ[i, j] == naive_differing(own, scenes[video_id])
            assert relevant[i, j] == pytest.approx(
                naive_relevance(caption.mentioned, own, scenes[video_id])
            )
    same = np.array([[truth.captions.video_id[c] == v for v in video_ids] for c in caption_ids])
    assert (differ[same] == 0).all()
    assert (relevant[same] == 1).all()
    assert relevant.min() >= 0
    assert relevant.max() <= 1


def told_of(scene: Scene, *mentioned: str) -> tuple[dict, dict]:
    video = {
        "video_id": "a",
        "scene": vars(scene),
        "family": "a",
        "duplicate_of": None,
        "informative": [True],
    }
    return video, {
        "caption_id": "a-en0",
        "video_id": "a",
        "mentioned": list(mentioned),
        "spans": [],
    }


def test_relevance_by_hand():
    video, caption = told_of(replace(CALM, motion="right"), "colour", "motion")
    others = {
        "first": replace(CALM, motion="right", then="up"),
        "second": replace(CALM, motion="up", then="right", shape="star"),
        "neither": replace(CALM, motion="up", colour="blue"),
        "half": replace(CALM, motion="up"),
    }
    videos = [video] + [
        video | {"video_id": name, "scene": vars(scene)} for name, scene in others.items()
    ]
    known = Truth(pd.DataFrame(videos), pd.DataFrame([caption]))
    assert known.relevance(["a-en0"], list(others)).tolist() == [[1, 1, 0, 0.5]]
    beside = Scene("star", "blue", "large", "left", "up", "plain", "", "circle", "red", "still")
    video, caption = told_of(CALM, "shape", "colour")
    videos = [video, video | {"video_id": "b", "scene": vars(beside)}]
    assert Truth(pd.DataFrame(videos), pd.DataFrame([caption])).relevance(
        ["a-en0"], ["b"]
    ).tolist() == [[1]]


def test_swapped_is_the_family_one_factor_away(truth):
    found = 0
    for video_id, row in truth.videos.iterrows():
        expected: dict[str, list[str]] = {}
        for other in truth.videos.index[truth.videos.family == row.family]:
            names = differing(scene_of(truth, video_id), scene_of(truth, other))
            if len(names) == 1:
                expected.setdefault(names[0], []).append(other)
        assert truth.swapped(video_id) == expected
        found += bool(expected)
    assert found > 20


def test_truth_names_what_is_missing(truth, tmp_path):
    with pytest.raises(FileNotFoundError, match="tvrkit data prepare shapes"):
        Truth.open(tmp_path)
    with pytest.raises(KeyError, match="nothing"):
        truth.relevance(["nothing"], [])


# The prepared data set
#  ---------------------------------------------------------------------------------


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
    rows = captions[captions.language == language].reset_index()
    tags = truth.tags(rows)
    for video, text in zip(rows.video_id, tags, strict=True):
        whole = captions.loc[f"{video}-{language}0", "caption"]
        spans = truth.attribute_words(f"{video}-{language}0")
        assert text == " ".join(whole[start:end] for start, end, _ in spans)
        assert {factor for _, _, factor in spans} == {
            name for name, value in truth.factors.loc[video].items() if value
        }


def test_a_finished_data_set_is_left_alone_and_another_refused(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    prepare(root, "smoke")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match=r"'seed': 1.*'seed': 0"):
        prepare(root, "smoke", seed=1)
    with pytest.raises(ValueError, match=r"unknown preset 'huge': expected one of .*quick"):
        prepare(root, "huge")


def content(root: Path) -> dict[str, bytes]:
    files = [*root.glob("*.jsonl"), *root.glob("truth/*"), *root.glob("videos/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_killed_and_run_again_is_the_same(root, tmp_path):
    again = tmp_path / "shapes"
    code = f"from tvrkit.shapes.scenes import prepare; prepare({str(again)!r}, 'smoke')"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(again.glob("videos/*.mp4"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 20 <= len(list(again.glob("videos/*.mp4"))) < 112
    assert not (again / "card.json").exists()
    prepare(again, "smoke")
    assert content(again) == content(root)
    ours, theirs = (FrameStore(folder / "frames.lmdb") for folder in (again, root))
    assert ours.video_ids() == theirs.video_ids()
    for video_id in ours.video_ids():
        assert (ours.read(video_id, range(16)) == theirs.read(video_id, range(16))).all()


def test_a_failing_worker_is_an_error(tmp_path, capfd):
    video = plan(SMOKE, 0)[0]
    with pytest.raises(RuntimeError, match=r"rendering stopped \(exit codes \[1\], expected 0\)"):
        shapes._film_all([(video, tmp_path / "nowhere" / "a.mp4", 8)], 2)
    assert "FileNotFoundError" in capfd.readouterr().err
