"""What shapes' truth says of an evaluation, on scenes and scores made by hand."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tvrkit import files
from tvrkit.evaluation import factors
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.settings import EvalConfig
from tvrkit.shapes.scenes import FACTORS
from tvrkit.shapes.truth import Truth

SETTINGS = EvalConfig(bootstrap=100)


def make_truth(families):
    """Scenes w, x (another colour), y (motions in the other order), z (something else), and gone
    (as x, no frames)."""
    names = (
        "shape",
        "colour",
        "size",
        "place",
        "motion",
        "background",
        "then",
        "shape2",
        "colour2",
        "motion2",
    )
    scene = dict(
        zip(
            names, ("star", "red", "small", "left", "right", "plain", "up", "", "", ""), strict=True
        )
    )
    changes = {
        "w": {},
        "x": {"colour": "blue"},
        "y": {"motion": "up", "then": "right"},
        "z": {"shape": "ring"},
    }
    changes |= {"gone": {"colour": "white"}}
    videos = [
        {"video_id": video, "family": family, "scene": scene | change}
        for (video, change), family in zip(changes.items(), families, strict=True)
    ]
    said = {
        "a": "colour",
        "b": "motion then",
        "c": "motion",
        "d": "colour shape",
        "e": "then motion",
        "f": "colour",
    }
    captions = [
        {"caption_id": caption, "video_id": video, "mentioned": said[caption].split()}
        for caption, video in zip(said, "wwwxyz", strict=True)
    ]
    return Truth(pd.DataFrame(videos), pd.DataFrame(captions))


def test_accuracy_per_swapped_factor():
    scores = np.array(
        [
            [0.9, 0.1, 0.9, 0.0],  # a (w) says the colour: right against x; not asked about y
            [0.5, 0.9, 0.4, 0.0],  # b (w) says both motions: right against y
            [0.1, 0.0, 0.9, 0.0],  # c (w) says one motion only: not asked
            [0.6, 0.5, 0.0, 0.0],  # d (x) says the colour: wrong against w
            [0.9, 0.0, 0.9, 0.0],  # e (y) says both motions: a tie with w is wrong
            [0.0, 0.0, 0.0, 1.0],  # f (z) has no rival
        ]
    )
    found = Evaluation.from_similarity(
        scores,
        (list("abcdef"), list("wxyz"), [0, 0, 0, 1, 2, 3]),
        SETTINGS,
        truth=make_truth([0, 0, 0, 3, 0]),
    )
    table = factors.per_factor_accuracy([found])
    expected = [["colour", 50.0, 2, 1], ["order", 50.0, 2, 1]]
    assert table[["factor", "accuracy", "pairs", "families"]].to_numpy().tolist() == expected
    assert found.family_of_video.tolist() == [0, 0, 0, 1]
    assert set(found.clusters["t2v"][:5]) == {0}
    assert table[["low", "high"]].isna().all(axis=None)  # one family has no spread


def test_accuracy_per_factor_has_an_interval_over_families():
    families = [[name, f"{name}'"] for name in "abcdefgh"]
    scores = np.zeros((16, 16))
    right = [0, 1, 2, 4, 6, 8, 9, 10, 12]
    scores[right, right] = 1
    ids = [video for family in families for video in family]
    truth = SimpleNamespace(
        captions=pd.DataFrame({"mentioned": [["shape"]] * 16}, index=ids),
        videos=pd.DataFrame({"family": [video[0] for video in ids]}, index=ids),
        swapped=lambda video: {
            "shape": [other for other in ids if other[0] == video[0] and other != video]
        },
    )
    alone = Evaluation.from_similarity(scores, (ids, ids, np.arange(16)), SETTINGS)
    one, none = (
        replace(each, factors=factors.swapped_counts(each, truth))
        for each in (alone, replace(alone, similarity=np.zeros((16, 16))))
    )
    row = factors.per_factor_accuracy([one]).iloc[0]
    assert (row["accuracy"], row["families"]) == (pytest.approx(100 * 9 / 16), 8)
    assert 30 < row["low"] < row["accuracy"] < row["high"] < 80
    both = factors.per_factor_accuracy([one, none]).iloc[0]
    assert (both["accuracy"], both["pairs"]) == (pytest.approx(100 * 9 / 32), 16)
    copies = factors.per_factor_accuracy([one, one, one]).iloc[0]
    pd.testing.assert_series_equal(copies, row)  # families are resampled, with all seeds


def test_accuracy_without_any_pair_is_an_empty_table():
    alone = Evaluation.from_similarity(
        [[1.0]], (["f"], ["z"], [0]), SETTINGS, truth=make_truth([0, 0, 0, 3, 0])
    )
    table = factors.per_factor_accuracy([alone])
    assert len(table) == 0
    assert "accuracy" in table


def test_a_perfect_reader_guesses_among_what_fits():
    truth = make_truth([0, 1, 2, 3, 4])
    truth.factors.loc["gone"] = truth.factors.loc["w"]  # the same scene twice
    bounds = factors.ceilings(["a", "c", "d"], ["w", "x", "y", "gone"], truth)
    # a: red are w, y, gone; c: "right", as first or as only motion; d: a blue star is x
    fitting = (truth.relevance(["a", "c", "d"], ["w", "x", "y", "gone"]) == 1).sum(1)
    assert fitting[[0, 2]].tolist() == [3, 1]
    assert bounds["t2v R@1 ceiling"] == pytest.approx(100 * np.mean(1 / fitting))
    assert bounds["v2t R@1 ceiling"] == pytest.approx(100 * np.mean([1 / 2, 1, 1, 1 / 2]))


def test_without_truth_every_video_is_a_family_and_nothing_is_swapped(tmp_path):
    assert factors.truth_of(tmp_path) is None
    found = Evaluation.from_similarity(np.eye(3), (list("abc"), list("xyz"), range(3)), SETTINGS)
    assert found.family_of_video.tolist() == [0, 1, 2]
    assert found.factors.empty


def test_truth_is_read_once_and_again_when_its_files_change(tmp_path):
    def write(family, when):
        video = {"video_id": "v", "family": family, "scene": dict.fromkeys(FACTORS, "")}
        caption = {"caption_id": "c", "video_id": "v", "mentioned": []}
        for name, row in {"videos": video, "captions": caption}.items():
            files.write_json_lines(tmp_path / f"truth/{name}.jsonl", [row])
        os.utime(tmp_path / "truth/videos.jsonl", ns=(when, when))

    write("one", when=1)
    first = factors.truth_of(tmp_path)
    assert factors.truth_of(tmp_path) is first
    write("other", when=2)
    assert factors.truth_of(tmp_path).videos.family["v"] == "other"
