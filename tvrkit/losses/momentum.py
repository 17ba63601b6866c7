"""HMMC's losses (Shen et al., 2023): frames against the text, and contrast with queues.

`frame_matching_plain`, `neighbour_frames_plain` and `frame_text_plain` are the equations, one
`info_nce` or `queue_contrast` a term; the functions beside them take all frames at once, form each
product with a queue once, and leave padded frames out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tvrkit.losses.contrastive import info_nce, matched_positives


def frame_matching_plain(similarity, logit_scale: float) -> Tensor:
    """`frame_matching` frame by frame, all frames valid and all pairs distinct."""
    frames = similarity.unbind(dim=2)
    losses = [2 * info_nce(scores, logit_scale=logit_scale) for scores in frames]
    return torch.stack(losses).mean()


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
    others = matched_positives(similarity[..., 0], positives).clone().fill_diagonal_(False)
    logits = (logit_scale * similarity).masked_fill(others[..., None], -torch.inf)
    valid = _valid(similarity[0], frame_mask)
    # -inf only off the diagonal: a padded position, left out of the mean, must not make NaN
    # gradients.
    off_diagonal = ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    candidates = logits.masked_fill(off_diagonal[..., None] & ~valid, -torch.inf)
    text_to_video = -candidates.log_softmax(dim=1).diagonal().T
    video_to_text = -logits.log_softmax(dim=0).diagonal().T
    return (text_to_video + video_to_text).where(valid, 0.0).sum() / valid.sum()


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


def neighbour_frames_plain(frames, frame_keys, queue, temperature: float) -> Tensor:
    """`neighbour_frames` term by term, all frames valid."""
    before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    key_before, key_after = frame_keys[:, :-1].flatten(0, 1), frame_keys[:, 1:].flatten(0, 1)
    forward = queue_contrast(before, key_after, queue, temperature=temperature)
    return forward + queue_contrast(after, key_before, queue, temperature=temperature)


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
        frames: (B, F, D) float, q, through projector and predictor.
        frame_keys: (B, F, D) float, k, through the momentum projector.
        queue: (D, K) float unit columns.
        frame_mask: (B, F), non-zero where valid; None = all. Pairs with a padded frame do not
            count.
        temperature: above 0.

    Returns:
        Scalar; 0 without any pair.
    """
    frames, keys = F.normalize(frames, dim=-1), F.normalize(frame_keys, dim=-1)
    negative = frames @ queue
    forward = _contrast((frames[:, :-1] * keys[:, 1:]).sum(-1), negative[:, :-1], temperature)
    backward = _contrast((frames[:, 1:] * keys[:, :-1]).sum(-1), negative[:, 1:], temperature)
    valid = _valid(frames[..., 0], frame_mask)
    pairs = valid[:, :-1] & valid[:, 1:]
    return (forward + backward).where(pairs, 0.0).sum() / pairs.sum().clamp(min=1)


def frame_text_plain(frames, frame_keys, frame_queue, text, text_key, text_queue, temperature):
    """`frame_text` term by term, all frames valid."""
    text, text_key = (side.repeat_interleave(frames.shape[1], dim=0) for side in (text, text_key))
    frames, frame_keys = frames.flatten(0, 1), frame_keys.flatten(0, 1)
    text_side = queue_contrast(text, frame_keys, frame_queue, temperature=temperature)
    return text_side + queue_contrast(frames, text_key, text_queue, temperature=temperature)


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

        1/F sum_i [ CL(t, fk_i, frame_queue) + CL(f_i, tk, text_queue) ],  CL = `queue_contrast`

    Args:
        frames: (B, F, D) float, f.
        frame_keys: (B, F, D) float, fk, of the momentum encoder.
        frame_queue: (D, K) float unit columns.
        text: (B, D) float, t.
        text_key: (B, D) float, tk, of the momentum encoder.
        text_queue: (D, K') float unit columns.
        frame_mask: (B, F), non-zero where valid; None = all. Padded frames do not count.
        temperature: above 0.

    Returns:
        Scalar.
    """
    sides = (frames, frame_keys, text, text_key)
    frames, keys, text, key = (F.normalize(side, dim=-1) for side in sides)
    negative = (text @ frame_queue)[:, None]  # the same for every frame
    text_side = _contrast(torch.einsum("bd,bfd->bf", text, keys), negative, temperature)
    positive = torch.einsum("bfd,bd->bf", frames, key)
    frame_side = _contrast(positive, frames @ text_queue, temperature)
    valid = _valid(text_side, frame_mask)
    return (text_side + frame_side).where(valid, 0.0).sum() / valid.sum()


def _valid(like: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask != 0


def _contrast(positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-log softmax([positive, negatives] / temperature)_0 of (...) and (..., K)."""
    return F.softplus((negatives / temperature).logsumexp(dim=-1) - positive / temperature)
