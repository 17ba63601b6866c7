"""Scoring of attention and mining against truth, with naive loops as oracles."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvrkit import inspection
from tvrkit.config import DataConfig
from tvrkit.data.shapes import Truth

FIRST = {"shape": "circle", "colour": "red", "size": "small", "place": "left", "motion": "right",
         "background": "plain", "then": "up", "shape2": "", "colour2": "", "motion2": ""}  # fmt: skip
EVERYTHING = ["shape", "colour", "size", "place", "motion", "background", "then"]


@pytest.fixture(scope="module")
def truth():
    """Family of a, a blue a, and a with its motions in the other order; d repeats a; e is something else."""
    scenes = {
        "a": FIRST,
        "b": FIRST | {"colour": "blue"},
        "c": FIRST | {"motion": "up", "then": "right"},
        "d": FIRST,
        "e": FIRST | {"shape": "star", "colour": "white", "place": "centre", "motion": "grow"},
    }
    family = {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e"}
    videos = [
        {"video_id": name, "split": "test", "family": family[name], "informative": [True], "scene": scene,
         "duplicate_of": "a" if name == "d" else None, "distractors": [""]}
        for name, scene in scenes.items()
    ]  # fmt: skip
    spans = [(2, 5, "colour"), (6, 12, "shape"), (13, 23, "motion")]
    said = {"a0": ("a", EVERYTHING), "a1": ("a", ["shape", "size"]), "e0": ("e", EVERYTHING)}
    captions = [
        {"caption_id": name, "video_id": video, "language": "en", "mentioned": factors, "spans": spans,
         "partial_of": None}
        for name, (video, factors) in said.items()
    ]  # fmt: skip
    return Truth(pd.DataFrame(videos), pd.DataFrame(captions))


IDS = (["a0", "a1", "e0"], list("abcde"), np.array([0, 0, 4]))


@given(st.lists(st.text("abc,é圆", min_size=1), min_size=2))
def test_word_spans_cut_where_blanks_are(words):
    caption = "  ".join(words)
    assert [caption[start:end] for start, end in inspection.word_spans(caption)] == words


def test_word_spans_of_chinese_are_characters():
    assert inspection.word_spans("红色的圆") == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_token_values_are_summed_over_the_word_they_belong_to():
    words = inspection.word_spans("a red circle cut")
    tokens = [(1, (0, 1)), (2, (2, 5)), (3, (6, 9)), (4, (9, 12))]
    values = np.array([9.0, 0.1, 0.2, 0.3, 0.4, 9.0])
    np.testing.assert_allclose(inspection.per_word(values, tokens, words), [0.1, 0.2, 0.7, 0])
    assert inspection.overlapping(words, [(2, 5, "colour"), (11, 20, "shape")]).tolist() == [0, 1, 1, 1]
    assert inspection.overlapping(words, []).tolist() == [False] * 4


def test_auc_counts_the_pairs_that_are_in_order_and_half_the_tied_ones():
    rng = np.random.default_rng(0)
    for levels in (3, 1000):
        scores, truth = rng.integers(levels, size=50), rng.random(50) < 0.3
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
        assert inspection.auc(scores, truth) == pytest.approx(np.mean(pairs))
    assert inspection.auc([0.1, 0.9], [False, True]) == 1
    assert np.isnan(inspection.auc([0.1, 0.9], [True, True]))


def test_mean_interval_covers_the_mean_of_its_distribution_about_95_times_of_100():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        mean, low, high = inspection.mean_interval(rng.normal(5, 2, 60), resamples=300)
        assert low <= mean <= high
        hits += low <= 5 <= high
    assert 88 <= hits <= 100


def test_mean_interval_leaves_nan_out_and_refuses_a_single_value():
    assert inspection.mean_interval([1, np.nan, 1]) == (1, 1, 1)
    assert inspection.mean_interval([1, np.nan, 3])[0] == 2
    with pytest.raises(ValueError, match="two values or more that are not NaN, got 1"):
        inspection.mean_interval([1, np.nan])


def test_mining_quality_counts():
    mined = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], bool)
    wanted = np.array([[0, 1, 0, 1], [0, 0, 0, 0]], bool)
    false = np.array([[0, 0, 0, 0], [0, 0, 0, 1]], bool)
    found = inspection.mining_quality(mined, wanted, false)
    assert found == {"pairs": 4, "per_text": 2, "precision": 25, "recall": 50, "false_negatives": 25}
    nothing = inspection.mining_quality(np.zeros_like(mined), np.zeros_like(mined), false)
    assert nothing["pairs"] == 0
    assert np.isnan([nothing["precision"], nothing["recall"], nothing["false_negatives"]]).all()


def test_kinds_of_pairs(truth):
    kinds = inspection.pair_kinds(truth, *IDS)
    named = [[next(kind for kind in kinds if kinds[kind][row, column]) for column in range(5)] for row in range(3)]
    far = "other"
    assert named == [
        ["match", "one factor apart", "one factor apart", "same meaning", far],
        ["match", "same meaning", "same meaning", "same meaning", far],  # "small circle": true of all but e
        [far, far, far, far, "match"],
    ]
    assert (sum(mask.astype(int) for mask in kinds.values()) == 1).all()


def test_telling_words_name_the_factors_in_which_the_videos_differ(truth):
    caption = "a red circle goes right"
    assert inspection.telling_words(truth, "a0", caption, "b").tolist() == [0, 1, 0, 0, 0]
    assert inspection.telling_words(truth, "a0", caption, "c").tolist() == [0, 0, 0, 1, 1]
    assert not inspection.telling_words(truth, "a0", caption, "d").any()


def test_frames_seen_are_those_an_evaluation_reads():
    clips = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    store = SimpleNamespace(count=lambda _: len(clips), read=lambda _, indices: clips[indices])
    indices, frames = inspection.frames_seen(SimpleNamespace(frames=store), DataConfig("x", max_frames=5), "v")
    assert indices.tolist() == [1, 3, 5, 7, 9]
    assert frames[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9]
