"""InfoNCE and NegNCE against loops, at extreme scores, and with several captions of a video in a
batch."""

import pytest
import torch

from tvrkit.losses.contrastive import info_nce, neg_nce, neg_nce_plain
from tvrkit.losses.miners import top_k_negatives

GROUPS = torch.tensor([0, 1, 1, 2, 3, 0])
SAME = GROUPS[:, None] == GROUPS[None]


@pytest.fixture
def scores():
    return 0.3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def naive(scores, same, scale, margin=0.0, negative_weight=0.5):
    """Both losses from their definition, pair by pair."""
    total = 0.0
    for s, p in ((scores, same), (scores.T, same.T)):
        n, positive, negative = len(s), [], []
        best_row = [max(s[i, k] for k in range(n) if p[i, k]) for i in range(n)]
        best_column = [max(s[k, j] for k in range(n) if p[k, j]) for j in range(n)]
        for i in range(n):
            allowed = [j for j in range(n) if j == i or not p[i, j]]
            partition = sum(torch.exp(scale * s[i, j]) for j in allowed)
            positive.append(-torch.log(torch.exp(scale * s[i, i]) / partition))
            for j in allowed:
                if j != i and (s[i, j] > best_row[i] - margin or s[i, j] > best_column[j] - margin):
                    negative.append(-torch.log(1 - torch.exp(scale * s[i, j]) / partition))
        total = total + sum(positive) / n / 2
        if negative:
            total = total + negative_weight * sum(negative) / len(negative) / 2
    return total


@pytest.mark.parametrize("same", [torch.eye(6, dtype=torch.bool), SAME], ids=["pairs", "captions"])
@pytest.mark.parametrize("margin", [0.0, 0.1, -0.2])
@pytest.mark.parametrize("clamp", [None, 1e-12])
def test_neg_nce_equals_the_loops(scores, same, margin, clamp):
    result = neg_nce(scores, logit_scale=5.0, margin=margin, clamp=clamp, positives=same)
    torch.testing.assert_close(result, naive(scores, same, 5.0, margin))


@pytest.mark.parametrize("margin", [0.0, 0.1, -2.0])
def test_exact_and_plain_neg_nce_agree(scores, margin):
    exact = neg_nce(scores, logit_scale=5.0, margin=margin, clamp=None)
    torch.testing.assert_close(exact, neg_nce_plain(scores, 5.0, margin))


@pytest.mark.parametrize("same", [torch.eye(6, dtype=torch.bool), SAME], ids=["pairs", "captions"])
def test_info_nce_equals_the_loops(scores, same):
    expected = naive(scores, same, 5.0, negative_weight=0.0)
    torch.testing.assert_close(info_nce(scores, logit_scale=5.0, positives=same), expected)
    no_negatives = neg_nce(scores, logit_scale=5.0, negative_weight=0.0, clamp=None, positives=same)
    torch.testing.assert_close(no_negatives, expected)


def test_captions_of_one_video_do_not_repel_each_other(scores):
    scores.requires_grad_()
    for loss in (
        info_nce(scores, logit_scale=5.0, positives=SAME),
        neg_nce(scores, logit_scale=5.0, positives=SAME),
        neg_nce(scores, logit_scale=5.0, clamp=None, positives=SAME),
    ):
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient[SAME & ~torch.eye(6, dtype=torch.bool)].abs().max() == 0
        assert (gradient.diagonal() < 0).all()
        assert (gradient[~SAME] > 0).all()


def test_released_clamp_kills_the_gradient_that_log_space_keeps():
    """Finding 13: a positive 0.2 below its negatives, at scale 100."""
    scores = (0.2 * (1 - torch.eye(4))).requires_grad_()
    (released,) = torch.autograd.grad(neg_nce(scores), scores)
    (corrected,) = torch.autograd.grad(neg_nce(scores, clamp=None), scores)
    assert released.diagonal().abs().max() < 1e-5
    assert corrected.diagonal().abs().min() > 10


@pytest.mark.parametrize("spread", [1e-6, 1.0, 50.0])
def test_log_space_is_finite_at_any_score(spread):
    random = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):
        scores = (spread * (sign * torch.eye(5) + 0.1 * random)).requires_grad_()
        loss = neg_nce(scores, clamp=None)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_log_space_gradient_is_the_derivative(scores):
    assert torch.autograd.gradcheck(
        lambda s: neg_nce(s, logit_scale=7.0, clamp=None, positives=SAME), scores.requires_grad_()
    )


@pytest.mark.parametrize("clamp", [None, 1e-6])
def test_a_single_pair_is_a_batch(clamp):
    scores = torch.tensor([[0.3]], requires_grad=True)
    loss = neg_nce(scores, clamp=clamp) + info_nce(scores, logit_scale=100.0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(0.0, abs=2e-6)
    assert gradient.item() == 0.0


@pytest.mark.parametrize("clamp", [None, 1e-6])
def test_order_of_the_batch_changes_nothing(scores, clamp):
    order = torch.randperm(6)
    moved = neg_nce(scores[order][:, order], clamp=clamp, positives=SAME[order][:, order])
    torch.testing.assert_close(moved, neg_nce(scores, clamp=clamp, positives=SAME))


def test_another_miner_can_be_given(scores):
    positives = torch.eye(6, dtype=torch.bool)
    hard = top_k_negatives(scores, positives, k=2)
    none = neg_nce(scores, logit_scale=5.0, hard=torch.zeros_like(hard))
    torch.testing.assert_close(none, info_nce(scores, logit_scale=5.0))
    assert neg_nce(scores, logit_scale=5.0, hard=hard) > none


def test_the_scale_can_be_learned(scores):
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    neg_nce(scores, logit_scale=scale.exp(), clamp=None).backward()
    assert scale.grad.abs() > 0


def test_bad_input_is_named(scores):
    with pytest.raises(ValueError, match="expected a square matrix, got 4 x 6"):
        info_nce(scores[:4], logit_scale=1.0)
    with pytest.raises(ValueError, match="True diagonal"):
        neg_nce(scores, positives=torch.zeros(6, 6, dtype=torch.bool))
