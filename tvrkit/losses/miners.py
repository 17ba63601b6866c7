"""Miners of hard negatives: (similarity, positives) -> bool mask, without gradient, never a
positive."""

import torch
from torch import Tensor


@torch.no_grad()
def margin_negatives(similarity: Tensor, positives: Tensor, *, margin: float = 0.0) -> Tensor:
    """NegNCE's set H: pairs that score above the match of their text or of their video (Jiang et
    al., 2023).

        H = { not positive(i,j) : S_ij > S_i+ - margin  or  S_ij > S_+j - margin }

    where S_i+ and S_+j are the best matches of text i and of video j; on a batch of distinct pairs,
    the diagonal. A text or a video without a match mines nothing.

    Args:
        similarity: (N_t, N_v) float.
        positives: (N_t, N_v) bool.
        margin: on the scale of `similarity`; larger mines more.
    """
    return margin_excess(similarity, positives) > -margin


@torch.no_grad()
def margin_excess(similarity: Tensor, positives: Tensor) -> Tensor:
    """How hard a negative is: its score less the lower of its text's and its video's own match,
    S_i+ and S_+j.

    Args:
        similarity: (N_t, N_v) float.
        positives: (N_t, N_v) bool.

    Returns:
        (N_t, N_v) float, above 0 where the pair beats a match; -inf at positives and where neither
        side has a match.
    """
    matches = similarity.masked_fill(~positives, -torch.inf)
    own_text, own_video = (
        own.masked_fill(own == -torch.inf, torch.inf)
        for own in (matches.amax(1, keepdim=True), matches.amax(0))
    )
    return (similarity - torch.minimum(own_text, own_video)).masked_fill(positives, -torch.inf)


@torch.no_grad()
def top_k_negatives(similarity: Tensor, positives: Tensor, *, k: int = 5) -> Tensor:
    """The `k` most similar negatives of every text (fewer where it has fewer).

    Args:
        similarity: (N_t, N_v) float.
        positives: (N_t, N_v) bool.
        k: negatives per text.
    """
    candidates = similarity.masked_fill(positives, -torch.inf)
    best = candidates.topk(min(k, candidates.shape[1]), dim=1).indices
    return torch.zeros_like(positives).scatter(1, best, True) & ~positives
