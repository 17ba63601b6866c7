"""Miners: what they pick, and that it is never a positive."""

import pytest
import torch

from tvrkit.losses.miners import margin_excess, margin_negatives, top_k_negatives


@pytest.fixture
def scores():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def positives():
    """Eight captions of five of six videos; video 5 has none."""
    return torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 3, 3, 3, 4]), 6).bool()


@pytest.mark.parametrize("miner", [margin_negatives, top_k_negatives])
def test_never_a_positive_and_no_gradient(miner, scores, positives):
    mined = miner(scores.requires_grad_(), positives)
    assert mined.dtype == torch.bool
    assert mined.shape == scores.shape
    assert mined.any()
    assert not (mined & positives).any()
    assert not mined.requires_grad


def test_margin_is_the_definition(scores):
    square, eye = scores[:6], torch.eye(6, dtype=torch.bool)
    for margin in (0.0, 0.5, -0.5):
        mined = margin_negatives(square, eye, margin=margin)
        for i in range(6):
            for j in range(6):
                above = square[i, j] > square[i, i] - margin or square[i, j] > square[j, j] - margin
                assert mined[i, j] == (i != j and bool(above))


def test_a_video_without_a_caption_mines_nothing_by_itself(scores, positives):
    mined = margin_negatives(scores, positives)
    own = scores.masked_fill(~positives, -torch.inf).amax(1)
    assert torch.equal(mined[:, 5], scores[:, 5] > own)


def test_excess_is_what_a_negative_has_over_the_lower_of_its_two_matches(scores, positives):
    excess = margin_excess(scores, positives)
    best_of_text = [scores[i][positives[i]].max() for i in range(8)]
    best_of_video = [
        scores[:, j][positives[:, j]].max() if positives[:, j].any() else torch.inf
        for j in range(6)
    ]
    for i in range(8):
        for j in range(6):
            lower = min(float(best_of_text[i]), float(best_of_video[j]))
            expected = -torch.inf if positives[i, j] else float(scores[i, j]) - lower
            assert float(excess[i, j]) == pytest.approx(expected, abs=1e-6)
    assert (margin_excess(scores, torch.zeros_like(positives)) == -torch.inf).all()


def test_top_k_takes_the_most_similar(scores, positives):
    mined = top_k_negatives(scores, positives, k=2)
    assert (mined.sum(1) == 2).all()
    for row, picked, positive in zip(scores, mined, positives, strict=True):
        assert row[picked].min() > row[~picked & ~positive].max()
    assert torch.equal(top_k_negatives(scores, positives, k=50), ~positives)
