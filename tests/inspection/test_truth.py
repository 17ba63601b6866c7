"""Accuracy against the truth of shapes, on scenes and scores made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.inspection.truth import (
    concept_preferences,
    frame_quality,
    partial_captions,
    per_factor_accuracy,
)
from tvrkit.settings import EvalConfig
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
        {"caption_id": caption, "mentioned": factors.split()} for caption, factors in said.items()
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
        scores, list("abcdef"), list("wxyz"), [0, 0, 0, 1, 2, 3], SETTINGS
    )
    table = per_factor_accuracy([found], make_truth([0, 0, 0, 3, 0]))
    expected = [["colour", 50.0, 2, 2, 1], ["order", 50.0, 2, 2, 1]]
    assert (
        table[["factor", "accuracy", "pairs", "captions", "families"]].to_numpy().tolist()
        == expected
    )
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
    one, none = (
        Evaluation.from_similarity(matrix, ids, ids, np.arange(16), SETTINGS)
        for matrix in (scores, np.zeros((16, 16)))
    )
    row = per_factor_accuracy([one], truth).iloc[0]
    assert (row["accuracy"], row["families"]) == (pytest.approx(100 * 9 / 16), 8)
    assert 30 < row["low"] < row["accuracy"] < row["high"] < 80
    both = per_factor_accuracy([one, none], truth).iloc[0]
    assert (both["accuracy"], both["pairs"]) == (pytest.approx(100 * 9 / 32), 16)
    copies = per_factor_accuracy([one, one, one], truth).iloc[0]
    pd.testing.assert_series_equal(copies, row)  # families are resampled, with all seeds


def test_accuracy_without_any_pair_is_an_empty_table():
    alone = Evaluation.from_similarity([[1.0]], ["f"], ["z"], [0], SETTINGS)
    table = per_factor_accuracy([alone], make_truth([0, 0, 0, 3, 0]))
    assert len(table) == 0
    assert "accuracy" in table


def test_frame_quality_is_1_where_the_informative_frames_have_the_weight():
    shows = [np.array([True, False, True, False]), np.array([False, True])]
    weights = {"frame_weight": [np.array([0.4, 0.1, 0.3, 0.2]), np.array([0.1, 0.9])]}
    weights["other"] = [-row for row in weights["frame_weight"]]
    numbers = frame_quality(weights, shows, top=1)
    assert {title: value for title, (value, *_) in numbers.items()} == {
        "frame AUC": 1,
        "other AUC": 0,
        "top-1 frames informative (%)": 100,
        "top-1 frames informative, above chance (points)": 50,
    }


def test_partial_captions_and_the_whole_ones(truth_of_captions):
    rows, whole = partial_captions(truth_of_captions, pd.Series(["a", "b", "c"]))
    assert (rows.tolist(), whole.tolist()) == ([2], [0])


def test_a_concept_prefers_the_words_of_the_factor_it_attends_to(truth_of_captions):
    rng = np.random.default_rng(0)
    tokens = [[(1, (0, 3)), (2, (4, 8))]] * 3
    attention = 0.01 * rng.random((3, 2, 4)) + [[[0, 0.9, 0.1, 0], [0, 0.1, 0.9, 0]]]
    means, differ = concept_preferences(truth_of_captions, list("abc"), attention, tokens)
    assert means.columns.tolist() == ["shape", "colour"]
    assert means["colour"][0] > 1.7
    assert means["colour"][1] < 0.3
    assert differ.all()


@pytest.fixture
def truth_of_captions():
    """Three captions, "red ball" each; the third leaves out what the first says."""
    spans = [(0, 3, "colour"), (4, 8, "shape")]
    captions = pd.DataFrame({"spans": [spans] * 3, "partial_of": [None, None, "a"]}, list("abc"))
    return SimpleNamespace(captions=captions, attribute_words=lambda name: captions["spans"][name])
