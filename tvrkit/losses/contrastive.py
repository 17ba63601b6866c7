"""Losses, each its equation. Scores are cosines; `logit_scale` is the factor on them, not its
logarithm."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tvrkit.losses.miners import margin_negatives

# --- Contrastive losses over a similarity matrix of matched pairs (CLIP4Clip, DMAE, GLSCL)
# ------------------


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
    positives = _positives(similarity, positives)
    directions = ((similarity, positives), (similarity.T, positives.T))
    return (
        sum(
            -_logits(*side, logit_scale).log_softmax(dim=1).diagonal().mean() for side in directions
        )
        / 2
    )


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
    queued: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """NegNCE: InfoNCE that also pushes mined hard negatives away (Jiang et al., 2023), symmetric
    mean.

        P = softmax_rows(scale S);  L = w_p mean_i -log P_ii + w_n mean_{(i,j) in H} -log(1 - P_ij)

    H is `miners.margin_negatives`; without hard negatives the second term is 0.

    Args:
        similarity: (N, N) float; row i and column i are a matched pair.
        logit_scale: factor on the scores, a scalar.
        margin: of the miner, on the scale of `similarity`.
        positive_weight: w_p.
        negative_weight: w_n; 0 leaves InfoNCE.
        clamp: P is clamped to [clamp, 1 - clamp], as released: a pair whose P_ii falls below gets
            no gradient any more. None = exact, in log space, with the gradient the equation has.
        positives: as in `info_nce`; never mined.
        hard: (N, N) bool, the mask of another miner in place of H.
        queued: K more candidates of each direction: scores (N, K) of the texts with further videos,
            scores (N, K) of the videos with further texts, and (N, K) bool, True where the two show
            the same video and are no negatives. They join the softmax, and H where they score above
            the best match of their row - margin.

    Returns:
        Scalar.

    Raises:
        ValueError: as `info_nce`.
    """
    positives = _positives(similarity, positives)
    mined = margin_negatives(similarity, positives, margin=margin) if hard is None else hard
    total = similarity.new_zeros(())
    directions = ((similarity, positives, mined), (similarity.T, positives.T, mined.T))
    for side, (scores, same, negatives) in enumerate(directions):
        logits = _logits(scores, same, logit_scale)
        if queued is not None:
            extra, known = queued[side], queued[2]
            logits = torch.cat(
                [logits, (logit_scale * extra).masked_fill(known, -torch.inf)], dim=1
            )
            above = extra > scores.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True) - margin
            negatives = torch.cat([negatives, above & ~known], dim=1)
        if clamp is None:
            log_p = logits.log_softmax(dim=1)
            log_not = _log_complement(log_p)
        else:
            probability = logits.softmax(dim=1).clamp(clamp, 1 - clamp)
            log_p, log_not = probability.log(), torch.log(1 - probability)
        repulsion = -log_not[negatives].sum() / negatives.sum().clamp(min=1)
        total = total - positive_weight * log_p.diagonal().mean() + negative_weight * repulsion
    return total / 2


def _positives(similarity: Tensor, positives: Tensor | None) -> Tensor:
    rows, columns = similarity.shape
    if rows != columns:
        raise ValueError(
            f"similarity of matched pairs: expected a square matrix, got {rows} x {columns}"
        )
    diagonal = torch.eye(rows, dtype=torch.bool, device=similarity.device)
    if positives is None:
        return diagonal
    if positives.shape != similarity.shape or not positives.diagonal().all():
        raise ValueError(
            f"positives: expected ({rows}, {rows}) bool with a True diagonal, got {tuple(positives.shape)}"
        )
    return positives


def _logits(similarity: Tensor, positives: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Scaled scores in which a row's other positives are -inf: they take no part in its softmax."""
    others = positives.clone()
    others.fill_diagonal_(False)
    return (logit_scale * similarity).masked_fill(others, -torch.inf)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - P) of row-wise probabilities, exact where P is next to 1.

    1 - P_ij is the sum of the row's other probabilities. At the row's largest entry that sum is
    formed; any other P is at most 1/2, where log1p(-P) is exact.
    """
    largest = log_p.argmax(dim=1, keepdim=True)
    is_largest = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, largest, True)
    lowest = torch.finfo(log_p.dtype).min  # finite: a row of one entry keeps a defined gradient
    rest = (
        log_p.masked_fill(is_largest, -torch.inf).clamp(min=lowest).logsumexp(dim=1, keepdim=True)
    )
    smaller = torch.log1p(-log_p.masked_fill(is_largest, -torch.inf).exp())
    return torch.where(is_largest, rest, smaller)


# --- GLSCL: concepts (Zhang et al., 2024)
#  -------------------------------------------------------------------


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
            the sum
            over the batch divided by Q: no cosine, and growing with the batch.

    Returns:
        Scalar.
    """
    text, video = F.normalize(text_concepts, dim=-1), F.normalize(video_concepts, dim=-1)
    cosine = (text * video).sum(dim=-1)
    if reduction == "batch_sum":
        agreement = cosine.sum(dim=0) / cosine.shape[1]
    elif reduction == "batch_mean":
        agreement = cosine.mean(dim=0)
    else:
        raise ValueError(f"unknown reduction {reduction!r}: expected one of batch_mean, batch_sum")
    drift = F.mse_loss(text.mean(dim=0), video.mean(dim=0))
    return drift + weight * (agreement - target).square().sum()


# --- HMMC: frames against the text, and contrast with queues (Shen et al., 2023)
# ----------------------------


def frame_matching(
    similarity: Tensor,
    frame_mask: Tensor | None = None,
    *,
    logit_scale: float | Tensor,
    positives: Tensor | None = None,
) -> Tensor:
    """FTM in fine-tuning: cross entropy in both directions (their sum) at every frame position,
    averaged.

        mean_f [ CE(scale S_f) + CE(scale S_f^T) ],  S_f[a,b] = cos(sentence a, frame f of video b)

    Args:
        similarity: (B, B, F) float; row i and column i are a matched pair.
        frame_mask: (B, F), non-zero where valid; None = all, as the released code takes it. A
            padded frame is neither a candidate nor a query, and the mean runs over the valid ones.
        logit_scale: factor on the scores, a scalar.
        positives: as in `info_nce`.

    Returns:
        Scalar.
    """
    others = _positives(similarity[..., 0], positives).clone().fill_diagonal_(False)
    logits = (logit_scale * similarity).masked_fill(others[..., None], -torch.inf)
    valid = (
        torch.ones_like(similarity[0], dtype=torch.bool) if frame_mask is None else frame_mask != 0
    )
    # -inf only off the diagonal: a padded position, left out of the mean, must not make NaN
    # gradients.
    off_diagonal = ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    candidates = logits.masked_fill((off_diagonal[..., None] & ~valid), -torch.inf)
    text_to_video = -candidates.log_softmax(dim=1).diagonal().T
    video_to_text = -logits.log_softmax(dim=0).diagonal().T
    return (text_to_video + video_to_text)[valid].mean()


def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE of each query with its own key against a queue (He et al., 2020).

        mean -log softmax([<q, k>, <q, queue>] / temperature)_0,  q and k normalised

    Args:
        query: (N, D) float.
        key: (N, D) float.
        queue: (D, K) float unit columns, all of them negatives.
        temperature: above 0.

    Returns:
        Scalar.
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    return _contrast((query * key).sum(dim=-1), query @ queue, temperature).mean()


def neighbour_frames(
    frames: Tensor,
    frame_keys: Tensor,
    queue: Tensor,
    frame_mask: Tensor | None = None,
    *,
    temperature: float,
) -> Tensor:
    """FAM: neighbouring frames match each other, both ways, against the queue of projected frames.

        1/(F-1) sum_i [ CL(q_i, k_{i+1}, queue) + CL(q_{i+1}, k_i, queue) ],  CL = `queue_contrast`

    Args:
        frames: (B, F, D) float, through projector and predictor.
        frame_keys: (B, F, D) float, through the momentum projector.
        queue: (D, K) float unit columns.
        frame_mask: (B, F), non-zero where valid; None = all. Pairs with a padded frame do not
            count.
        temperature: above 0.

    Returns:
        Scalar; 0 without any pair.
    """
    frames, frame_keys = F.normalize(frames, dim=-1), F.normalize(frame_keys, dim=-1)
    negative = frames @ queue
    forward = _contrast((frames[:, :-1] * frame_keys[:, 1:]).sum(-1), negative[:, :-1], temperature)
    backward = _contrast((frames[:, 1:] * frame_keys[:, :-1]).sum(-1), negative[:, 1:], temperature)
    valid = (
        torch.ones_like(frames[..., 0], dtype=torch.bool) if frame_mask is None else frame_mask != 0
    )
    pairs = valid[:, :-1] & valid[:, 1:]
    return (forward + backward)[pairs].sum() / pairs.sum().clamp(min=1)


def frame_text(
    frames: Tensor,
    frame_keys: Tensor,
    frame_queue: Tensor,
    text: Tensor,
    text_key: Tensor,
    text_queue: Tensor,
    frame_mask: Tensor | None = None,
    *,
    temperature: float,
) -> Tensor:
    """FTM in pre-training: the text matches each frame, and each frame the text, against the
    other's queue.

        1/F sum_i [ CL(text, fk_i, frame_queue) + CL(f_i, text_k, text_queue) ],  CL =
        `queue_contrast`

    Args:
        frames: (B, F, D) float.
        frame_keys: (B, F, D) float, of the momentum encoder.
        frame_queue: (D, K) float unit columns.
        text: (B, D) float.
        text_key: (B, D) float, of the momentum encoder.
        text_queue: (D, K') float unit columns.
        frame_mask: (B, F), non-zero where valid; None = all. Padded frames do not count.
        temperature: above 0.

    Returns:
        Scalar.
    """
    frames, frame_keys = F.normalize(frames, dim=-1), F.normalize(frame_keys, dim=-1)
    text, text_key = F.normalize(text, dim=-1), F.normalize(text_key, dim=-1)
    negative = (text @ frame_queue)[:, None]  # the same for every frame
    text_side = _contrast(torch.einsum("bd,bfd->bf", text, frame_keys), negative, temperature)
    frame_side = _contrast(
        torch.einsum("bfd,bd->bf", frames, text_key), frames @ text_queue, temperature
    )
    valid = torch.ones_like(text_side, dtype=torch.bool) if frame_mask is None else frame_mask != 0
    return (text_side + frame_side)[valid].mean()


def _contrast(positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-log softmax([positive, negatives] / temperature)_0 for positive (...) and negatives (...,
    K)."""
    return F.softplus((negatives / temperature).logsumexp(dim=-1) - positive / temperature)
