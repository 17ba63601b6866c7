"""Captions that say less than others."""

from types import SimpleNamespace

import pandas as pd
import pytest

from tvrkit.inspection.truth import partial_captions


def test_partial_captions_and_the_whole_ones(truth_of_captions):
    rows, whole = partial_captions(truth_of_captions, pd.Series(["a", "b", "c"]))
    assert (rows.tolist(), whole.tolist()) == ([2], [0])


@pytest.fixture
def truth_of_captions():
    """Three captions, "red ball" each; the third leaves out what the first says."""
    spans = [(0, 3, "colour"), (4, 8, "shape")]
    captions = pd.DataFrame({"spans": [spans] * 3, "partial_of": [None, None, "a"]}, list("abc"))
    return SimpleNamespace(captions=captions, attribute_words=lambda name: captions["spans"][name])
