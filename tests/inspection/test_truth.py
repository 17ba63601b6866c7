"""Accuracy against the truth of shapes, on scenes and scores made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tvrkit.inspection.truth import concept_preferences, frame_quality, partial_captions


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
