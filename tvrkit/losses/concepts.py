"""GLSCL's losses on concepts (Zhang et al., 2024): one query's agree across the two sides, those of
different queries differ."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tvrkit.settings import choose


def margin_ranking(gram: Tensor, *, margin: float) -> Tensor:
    """Every diagonal entry exceeds its row's and its column's others by a margin.

        sum_{i != j} [ relu(margin + G_ij - G_ii) + relu(margin + G_ij - G_jj) ] / (Q (Q - 1))

    Args:
        gram: (Q, Q) float.

    Returns:
        Scalar; 0 for Q = 1.
    """
    own = gram.diagonal()
    excess = (margin + gram - own[:, None]).relu() + (margin + gram - own[None, :]).relu()
    return (excess.sum() - excess.diagonal().sum()) / max(len(gram) * (len(gram) - 1), 1)


def concept_diversity(concepts: Tensor, *, margin: float) -> Tensor:
    """Intra-diversity: `margin_ranking` of the batch mean of the items' Gram matrices: concepts
    differ.

    Args:
        concepts: (B, Q, D) float of one side, any length.
        margin: how far each concept is from its neighbours, in cosine.

    Returns:
        Scalar, not yet weighted by alpha.
    """
    unit = F.normalize(concepts, dim=-1)
    return margin_ranking((unit @ unit.transpose(1, 2)).mean(dim=0), margin=margin)


def concept_consistency(
    text_concepts: Tensor,
    video_concepts: Tensor,
    *,
    target: float,
    weight: float,
    reduction: Literal["batch_sum", "batch_mean"] = "batch_mean",
) -> Tensor:
    """Inter-consistency: the two sides' concepts agree on average, and pair by pair up to a target
    cosine.

        MSE(mean_b n_b, mean_b s_b) + weight sum_q (c_q - target)^2,  c_q = mean_b <n_bq, s_bq>

    Args:
        text_concepts: (B, Q, D) float, n before normalisation.
        video_concepts: (B, Q, D) float, s before normalisation; row b of both is a matched pair.
        target: cosine that matched concepts are drawn to.
        weight: beta.
        reduction: "batch_mean" as in the equation; "batch_sum" is the released code, whose c_q is
            the sum over the batch divided by Q: no cosine, and growing with the batch.

    Returns:
        Scalar.
    """
    text, video = F.normalize(text_concepts, dim=-1), F.normalize(video_concepts, dim=-1)
    cosine = (text * video).sum(dim=-1)
    divisors = {"batch_mean": len(cosine), "batch_sum": cosine.shape[1]}
    agreement = cosine.sum(dim=0) / divisors[choose("reduction", reduction, divisors)]
    drift = F.mse_loss(text.mean(dim=0), video.mean(dim=0))
    return drift + weight * (agreement - target).square().sum()
