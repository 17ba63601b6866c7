"""Contrastive losses over a similarity matrix of matched pairs (CLIP4Clip, DMAE, GLSCL)."""

import torch
from torch import Tensor

from tvrkit.data.batch import readable
from tvrkit.losses.miners import margin_negatives


def info_nce(
    similarity: Tensor, *, logit_scale: float | Tensor, positives: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE: mean over both directions of -log softmax(scale S)_ii (Luo et al., 2021).

    Args:
        similarity: (N, N) float; row i and column i are a matched pair.
        logit_scale: factor on the scores, a scalar.
        positives: (N, N) bool, True where text i and video j belong together; default the diagonal.
            Those off the diagonal are left out of the denominators: captions of one video never
            repel each other.

    Returns:
        Scalar.

    Raises:
        ValueError: the similarity is not square, or the diagonal of `positives` is not True.
    """
    positives = matched_positives(similarity, positives)
    total = similarity.new_zeros(())
    for scores, same in ((similarity, positives), (similarity.T, positives.T)):
        logits = candidate_logits(scores, same, logit_scale)
        total = total - logits.log_softmax(dim=1).diagonal().mean()
    return total / 2


def neg_nce_plain(
    similarity: Tensor, logit_scale: float, margin: float = 0.0, negative_weight: float = 0.5
) -> Tensor:
    """`neg_nce` as the paper writes it: distinct pairs, probabilities as float32 rounds them."""
    total = similarity.new_zeros(())
    for scores in (similarity, similarity.T):
        probability, own = (logit_scale * scores).softmax(dim=1), scores.diagonal()
        hard = (scores > own[:, None] - margin) | (scores > own[None, :] - margin)
        hard = hard.fill_diagonal_(False)
        repulsion = -torch.log(1 - probability[hard]).sum() / hard.sum().clamp(min=1)
        total = total - probability.diagonal().log().mean() + negative_weight * repulsion
    return total / 2


def neg_nce(
    similarity: Tensor,
    *,
    logit_scale: float | Tensor = 100.0,
    margin: float = 0.0,
    positive_weight: float = 1.0,
    negative_weight: float = 0.5,
    clamp: float | None = 1e-6,
    positives: Tensor | None = None,
    hard: Tensor | None = None,
) -> Tensor:
    """NegNCE: InfoNCE that also pushes mined hard negatives away (Jiang et al., 2023), symmetric
    mean.

        P = softmax_rows(scale S);  L = w_p mean_i -log P_ii + w_n mean_{(i,j) in H} -log(1 - P_ij)

    H is `miners.margin_negatives`; without hard negatives the second term is 0. `neg_nce_plain` is
    the same in the paper's notation.

    Args:
        similarity: (N, N) float; row i and column i are a matched pair.
        logit_scale: factor on the scores, a scalar.
        margin: of the miner, on the scale of `similarity`.
        positive_weight: w_p.
        negative_weight: w_n; 0 leaves InfoNCE.
        clamp: see `neg_nce_terms`.
        positives: as in `info_nce`; never mined.
        hard: (N, N) bool, the mask of another miner in place of H.

    Returns:
        Scalar.

    Raises:
        ValueError: as `info_nce`.
    """
    positives = matched_positives(similarity, positives)
    mined = margin_negatives(similarity, positives, margin=margin) if hard is None else hard
    total = similarity.new_zeros(())
    directions = ((similarity, positives, mined), (similarity.T, positives.T, mined.T))
    for scores, same, negatives in directions:
        logits = candidate_logits(scores, same, logit_scale)
        attraction, repulsion = neg_nce_terms(logits, negatives, clamp)
        total = total + positive_weight * attraction + negative_weight * repulsion
    return total / 2


def neg_nce_terms(
    logits: Tensor, negatives: Tensor, clamp: float | None = None
) -> tuple[Tensor, Tensor]:
    """NegNCE's two terms in one direction: mean_i -log P_ii and mean_H -log(1 - P_ij).

    Args:
        logits: (N, M) float, M >= N; the match of row i is column i.
        negatives: (N, M) bool, H.
        clamp: P is clamped to [clamp, 1 - clamp], as released: a pair whose P_ii falls below gets
            no gradient any more. None = exact, in log space, with the gradient the equation has.

    Returns:
        Two scalars; the second is 0 where H is empty.
    """
    if clamp is None:
        log_p = logits.log_softmax(dim=1)
        log_not = _log_complement(log_p)
    else:
        probability = logits.softmax(dim=1).clamp(clamp, 1 - clamp)
        log_p, log_not = probability.log(), torch.log(1 - probability)
    # flat: summed row by row, however it lies in memory
    repulsion = -log_not.where(negatives, 0.0).flatten().sum() / negatives.sum().clamp(min=1)
    return -log_p.diagonal().mean(), repulsion


def matched_positives(similarity: Tensor, positives: Tensor | None) -> Tensor:
    """(N, N) bool `positives`, or the diagonal where they are None; errors as `info_nce`."""
    rows, columns = similarity.shape
    if rows != columns:
        shape = f"{rows} x {columns}"
        raise ValueError(f"similarity of matched pairs: expected a square matrix, got {shape}")
    if positives is None:
        return torch.eye(rows, dtype=torch.bool, device=similarity.device)
    fits = positives.shape == similarity.shape
    if not fits or (readable(positives) and not positives.diagonal().all()):
        expected = f"({rows}, {rows}) bool with a True diagonal"
        raise ValueError(f"positives: expected {expected}, got {tuple(positives.shape)}")
    return positives


def candidate_logits(similarity: Tensor, positives: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Scaled scores in which a row's other positives are -inf: they take no part in its softmax."""
    others = positives.clone().fill_diagonal_(False)
    return (logit_scale * similarity).masked_fill(others, -torch.inf)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - P) of row-wise probabilities, exact where P is next to 1.

    1 - P_ij is the sum of the row's other probabilities. At the row's largest entry that sum is
    formed; any other P is at most 1/2, where log1p(-P) is exact.
    """
    largest = log_p.argmax(dim=1, keepdim=True)
    is_largest = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, largest, True)
    others = log_p.masked_fill(is_largest, -torch.inf)
    lowest = torch.finfo(log_p.dtype).min  # finite: a row of one entry keeps a defined gradient
    rest = others.clamp(min=lowest).logsumexp(dim=1, keepdim=True)
    return torch.where(is_largest, rest, torch.log1p(-others.exp()))
