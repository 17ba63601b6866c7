"""What may be shown, and that splits, families and duplicates are what they say."""

from dataclasses import replace

import numpy as np
import pytest

from tvrkit.shapes.render import render
from tvrkit.shapes.scenes import (
    FACTORS,
    PRESETS,
    SPLITS,
    Scene,
    backwards,
    differing,
    neighbours,
    plan,
)

SMOKE = PRESETS["smoke"]
CALM = Scene("circle", "red", "small", "centre", "still", "plain")


def test_one_seed_one_plan():
    assert plan(SMOKE, 3) == plan(SMOKE, 3)
    assert plan(SMOKE, 3) != plan(SMOKE, 4)


def test_splits_are_disjoint_in_meaning_and_as_large_as_said():
    videos = plan(PRESETS["quick"], 0)
    scenes = {name: [video.scene for video in videos if video.split == name] for name in SPLITS}
    assert {name: len(found) for name, found in scenes.items()} == {
        "train": 2000,
        "val": 200,
        "test": 1000,
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
    share = sum(video.split == "test" for video in followers) / 1000
    expected = PRESETS["quick"].test_families * 4 / 5  # four of a family's five follow the first
    assert 0.6 * expected < share < 1.4 * expected
    kinds = set()
    for video in followers:
        kinds.update(names := differing(video.scene, scenes[video.family]))
        assert len(names) == 1
    assert kinds == {*FACTORS, "order", "direction"}


def test_the_contrast_set_is_families_of_scenes_that_were_not_trained_on():
    videos = plan(PRESETS["contrast"], 0)
    scenes = {video.video_id: video.scene for video in videos}
    assert {video.split for video in videos} == {"test"}
    assert len({*scenes.values()}) == len(videos) == PRESETS["contrast"].test
    assert not {*scenes.values()} & {video.scene for video in plan(PRESETS["quick"], 0)}
    families = {factor: set() for factor in (*FACTORS, "order", "direction")}
    for video in videos:
        if video.family != video.video_id:
            (factor,) = differing(video.scene, scenes[video.family])
            families[factor].add(video.family)
    assert min(map(len, families.values())) >= 25
    assert len({video.family for video in videos}) < len(videos) / 8


def test_training_scenes_share_looks_so_that_only_motion_tells_them_apart():
    preset = replace(SMOKE, train=400, alike=0.8, families=0.0, look_size=20, duplicates=0.0)
    looks = {}
    for video in plan(preset, 2):
        if video.split == "train":
            look = replace(video.scene, motion="", then="")
            looks.setdefault(look, set()).add((video.scene.motion, video.scene.then))
    crowds = [motions for motions in looks.values() if len(motions) > 1]
    assert 16 <= len(crowds) < 20  # 0.8 x 400 / 20, and rarely a look that came up twice
    assert 0.7 < sum(map(len, crowds)) / 400 < 0.9
    assert sum(map(len, looks.values())) == 400, "no scene twice"


def test_order_is_one_factor():
    first = replace(CALM, motion="right", then="up")
    assert differing(first, replace(CALM, motion="up", then="right")) == ["order"]
    assert differing(first, replace(CALM, motion="up", then="left")) == ["motion", "then"]
    assert differing(first, replace(first, size="large")) == ["size"]
    assert replace(first, motion="up", then="right") in neighbours(first, np.random.default_rng(0))


def test_backwards_is_the_same_frames_in_the_other_order():
    crossing = replace(CALM, place="left", motion="right")
    other = backwards(crossing)
    assert other == replace(CALM, place="right", motion="left")
    assert backwards(other) == crossing
    assert differing(crossing, other) == ["direction"]
    there, back = (render(scene, [""] * 8, [3]).astype(int) for scene in (crossing, other))
    assert np.abs(there - back[::-1]).max() < 25  # grain
    assert np.abs(there - back).max() > 100
    assert other in neighbours(crossing, np.random.default_rng(0))


@pytest.mark.parametrize(
    "change",
    [
        {"place": "centre", "motion": "right"},
        {"place": "left", "motion": "orbit"},
        {"place": "left", "motion": "right", "then": "up"},
        {"place": "left", "motion": "right", "shape2": "star", "motion2": "appears"},
    ],
)
def test_other_scenes_have_no_other_when_played_backwards(change):
    assert backwards(replace(CALM, **change)) is None


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
