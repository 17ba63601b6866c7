"""Miners of hard negatives: (similarity, positives) -> bool mask, without gradient, never a positive."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def margin_negatives(similarity: Tensor, positives: Tensor, *, margin: float = 0.0) -> Tensor:
    """NegNCE's set H: pairs that score above the match of their text or of their video (Jiang et al., 2023).

        H = { not positive(i,j) : S_ij > S_i+ - margin  or  S_ij > S_+j - margin }

    where S_i+ and S_+j are the best matches of text i and of video j; on a batch of distinct pairs, the
    diagonal. A text or a video without a match mines nothing.

    Args:
        similarity: (N_t, N_v) float.
        positives: (N_t, N_v) bool.
        margin: on the scale of `similarity`; larger mines more.
    """
    matches = similarity.masked_fill(~positives, -torch.inf)
    own_text, own_video = matches.amax(dim=1, keepdim=True), matches.amax(dim=0, keepdim=True)
    thresholds = (own.masked_fill(own == -torch.inf, torch.inf) - margin for own in (own_text, own_video))
    above_text, above_video = (similarity > threshold for threshold in thresholds)
    return ~positives & (above_text | above_video)


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


@torch.no_grad()
def random_negatives(
    similarity: Tensor, positives: Tensor, *, k: int = 5, generator: torch.Generator | None = None
) -> Tensor:
    """`k` negatives of every text drawn uniformly: the baseline a miner has to beat.

    Args:
        similarity: (N_t, N_v) float; only its shape and device matter.
        positives: (N_t, N_v) bool.
        k: negatives per text.
        generator: source of randomness on the device of `similarity`.
    """
    noise = torch.rand(similarity.shape, generator=generator, device=similarity.device)
    return top_k_negatives(noise, positives, k=k)


MINERS = {"margin": margin_negatives, "top_k": top_k_negatives, "random": random_negatives}
