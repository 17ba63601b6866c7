"""Distances and relevances against naive loops and by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tvrkit.shapes.scenes import FACTORS, Scene, differing
from tvrkit.shapes.truth import Truth

CALM = Scene("circle", "red", "small", "centre", "still", "plain")


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
    scenes = {name: Scene(**factors) for name, factors in truth.factors.iterrows()}
    for video_id, row in truth.videos.iterrows():
        expected: dict[str, list[str]] = {}
        for other in truth.videos.index[truth.videos.family == row.family]:
            names = differing(scenes[video_id], scenes[other])
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
