"""Similarities between texts and videos: exact, differentiable, cosine scale, chunked to a memory
bound.

Shapes: N_t texts, N_v videos, L words, F frames, D width. Masks are non-zero where a token is
    valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MaskFill = Literal["zero", "exclude"]
BLOCK = (
    2**22
)  # floats in the largest block a similarity builds (16 MB): what was fastest on 2 cores, D 512
ROWS = 256  # of a matrix product: with fewer the product itself slows down
NORM_EPS = 1e-8  # shortest length that a vector is divided by, as in torch's cosine_similarity


# --- DMAE: token-wise interaction
#  ---------------------------------------------------------------------------


def token_interaction(
    text: Tensor,
    video: Tensor,
    text_mask: Tensor,
    video_mask: Tensor,
    *,
    text_weight: Tensor | None = None,
    video_weight: Tensor | None = None,
    second_frame: bool | tuple[Tensor, Tensor] = False,
    mask_fill: MaskFill = "zero",
) -> Tensor:
    """Token-wise interaction: each word takes its best frame, each frame its best word (Jiang et
    al., 2023).

        L[a,b,t,v] = <text[a,t], video[b,v]>
        S[a,b] = ( sum_t p[a,t] (max_v L + second look) + sum_v q[b,v] max_t L ) / 2

    with p = mask / sum(mask) (TI) or mask * text_weight (WTI), and q likewise. The second look is
    0.5 g L[a,b,t,j]: j is the frame nearest to the word's best frame, g their similarity
    (`second_look`).

    The tokens are used as they come: L2-normalise words, sentence and frames before. Nothing is
    normalised here, because the released code does not renormalise the temporal transformer's
    output.

    Only valid words are multiplied: texts of equal length are packed together, so no N_t x N_v x L
    x F tensor is built and no product is spent on padding. A chunk holds about `BLOCK` floats.

    Args:
        text: (N_t, L, D) float. L = 1 gives the sentence-level interaction.
        video: (N_v, F, D) float.
        text_mask: (N_t, L) bool or number; 0 is padding, larger values weigh the word (textual
            attention: 2).
        video_mask: (N_v, F) bool or number in {0, 1}.
        text_weight: (N_t, L) float token weights; None = the mask, normalised to sum 1.
        video_weight: (N_v, F) float, likewise.
        second_frame: True = add the second look; or what `second_look` returned for these videos.
        mask_fill: what padding contributes to a maximum: "zero" (released code: it can win over
            negative values) or "exclude" (nothing).

    Returns:
        (N_t, N_v) float.

    Raises:
        ValueError: a text or a video without a valid token, or mask shapes that do not fit.
    """
    _check_mask("text", text, text_mask)
    _check_mask("video", video, video_mask)
    frames = fill_padding(video, video_mask, mask_fill)
    look = (
        second_look(video, video_mask, mask_fill=mask_fill)
        if second_frame is True
        else second_frame or None
    )
    word_weight = _weights(text_mask, text_weight).to(text.dtype)
    frame_weight = _weights(video_mask, video_weight).to(text.dtype)
    longest = int((text_mask != 0).sum(1).max())
    columns = []
    for block in _slices(len(video), BLOCK // (max(longest, ROWS) * video.shape[1])):
        part = (look[0][block], look[1][block]) if look else None
        columns.append(
            _rows(text, text_mask, word_weight, frames[block], frame_weight[block], part, mask_fill)
        )
    return torch.cat(columns, dim=1)


def second_look(
    video: Tensor, video_mask: Tensor, *, mask_fill: MaskFill = "zero"
) -> tuple[Tensor, Tensor]:
    """Each frame's nearest other frame in its video, for the visual attention of DMAE.

    Args:
        video: (N_v, F, D) float, as given to `token_interaction`.
        video_mask: (N_v, F).
        mask_fill: as in `token_interaction`.

    Returns:
        gain (N_v, F) float, the similarity to the nearest other frame, 0 where every other one is
        dissimilar, and index (N_v, F) int64, that frame.
    """
    frames = fill_padding(video, video_mask, "zero")
    gram = frames @ frames.transpose(1, 2)
    same = torch.eye(video.shape[1], dtype=torch.bool, device=video.device)
    gain, index = gram.masked_fill(same, 0.0).max(dim=2)
    if (
        mask_fill == "exclude"
    ):  # a padded frame stands for the first valid one, whose second look it must have
        source = _frame_source(video_mask)
        gain, index = gain.gather(1, source), index.gather(1, source)
    return gain, index


def fill_padding(video: Tensor, video_mask: Tensor, mask_fill: MaskFill) -> Tensor:
    """Write into padded frames what makes a plain maximum treat them as `mask_fill` says.

    A zero vector has product 0 with every word; a copy of the first valid frame never changes a
    maximum.

    Args:
        video: (N_v, F, D) float.
        video_mask: (N_v, F).
        mask_fill: "zero" or "exclude".
    """
    if mask_fill == "zero":
        return video.masked_fill(video_mask.eq(0)[..., None], 0.0)
    if mask_fill == "exclude":
        return video.gather(1, _frame_source(video_mask)[..., None].expand_as(video))
    raise ValueError(f"unknown mask_fill {mask_fill!r}: expected one of exclude, zero")


def _rows(text, text_mask, word_weight, frames, frame_weight, look, mask_fill) -> Tensor:
    """All texts against one block of videos, texts of equal length together."""
    valid = text_mask != 0
    length = valid.sum(1)
    flat = frames.transpose(0, 1).flatten(
        0, 1
    )  # (F * N_v, D): videos last, so that every maximum runs along rows
    rows, order = [], []
    for words in length.unique().tolist():
        members = (length == words).nonzero()[:, 0]
        for part in _slices(len(members), BLOCK // (words * len(flat))):
            index = members[part]
            member, word = valid[index].nonzero(as_tuple=True)
            packed = text[index[member], word]
            product = (packed @ flat.T).view(len(index), words, frames.shape[1], len(frames))
            weight = word_weight[index[member], word].view(len(index), words)
            padded = mask_fill == "zero" and words < text.shape[1]
            rows.append(_interact(product, weight, frame_weight, look, padded))
            order.append(index)
    return torch.cat(rows)[torch.cat(order).argsort()]


def _interact(
    product: Tensor, word_weight: Tensor, frame_weight: Tensor, look, padded: bool
) -> Tensor:
    """(n, N_v) scores from the products (n, words, F, N_v) of texts that have `words` valid words
    each."""
    best_frame, first = _max_over_frames(product)
    best_word = product.amax(dim=1)
    if padded:
        best_word = best_word.clamp(min=0)
    if look is not None:  # per word and video: the frame it looks at next, and how much that counts
        tables = (
            table.T[None, :, None].expand(len(product), -1, product.shape[1], -1) for table in look
        )
        gain, index = (table.gather(1, first[:, None]).transpose(1, 2) for table in tables)
        best_frame = torch.addcmul(
            best_frame, gain[:, :, 0], product.gather(2, index)[:, :, 0], value=0.5
        )
    text_side = torch.einsum("nlv,nl->nv", best_frame, word_weight)
    return (text_side + torch.einsum("nfv,vf->nv", best_word, frame_weight)) / 2


def _max_over_frames(product: Tensor) -> tuple[Tensor, Tensor]:
    """`product.max(dim=2)` of (n, words, F, N_v). Pooling has a vectorised kernel for it, 15 times
    faster on CPU."""
    texts, words, frames, videos = product.shape
    columns = product.view(texts * words, frames, 1, videos).permute(
        0, 3, 1, 2
    )  # F x 1 images, channels last
    pooled = F.max_pool2d(columns, (frames, 1), return_indices=True)
    return tuple(table.reshape(texts, words, videos) for table in pooled)


def _weights(mask: Tensor, weight: Tensor | None) -> Tensor:
    """Weight of every token: the mask normalised to sum 1 (TI), or the mask times the given weight
    (WTI)."""
    return mask * weight if weight is not None else mask / mask.sum(dim=-1, keepdim=True)


def _frame_source(mask: Tensor) -> Tensor:
    """(N_v, F) int64: each valid frame itself, each padded one the first valid frame of its
    video."""
    valid = mask != 0
    own = torch.arange(mask.shape[1], device=mask.device).expand_as(valid)
    return torch.where(valid, own, valid.int().argmax(dim=1, keepdim=True))


def _check_mask(side: str, tokens: Tensor, mask: Tensor) -> None:
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"{side} mask: expected shape {tuple(tokens.shape[:2])}, got {tuple(mask.shape)}"
        )
    empty = (mask != 0).sum(1) == 0
    if empty.any():
        raise ValueError(
            f"{side} {int(empty.int().argmax())} has no valid token: expected at least one"
        )


def _slices(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows (at least one) that cover `total` rows."""
    step = max(1, size)
    return (slice(start, start + step) for start in range(0, total, step))


# --- GLSCL: text-conditioned pooling and concepts
#  -----------------------------------------------------------


def conditioned_pooling(
    sentence: Tensor, frames: Tensor, frame_mask: Tensor, *, temperature: float
) -> Tensor:
    """Global interaction: cosine of the sentence with the frames it weighs itself (Zhang et al.,
    2024).

        w = softmax_v(<s_a, f_bv> / temperature) over valid frames;  S[a,b] = cos(s_a, sum_v w_v
        f_bv)

    In Gram form: <s, sum w f> = sum w <s,f> and |sum w f|^2 = w^T G w with G the Gram matrix of one
    video's frames, so no pooled (N_t, N_v, D) tensor is built. The released code masks after the
    softmax, which the cosine cancels but for underflow; here it is masked before.

    Args:
        sentence: (N_t, D) float, not normalised: its length sharpens the weights.
        frames: (N_v, F, D) float, not normalised.
        frame_mask: (N_v, F) bool or number, non-zero where valid.
        temperature: above 0; larger values weigh the frames more evenly.

    Returns:
        (N_t, N_v) float.

    Raises:
        ValueError: a video without a valid frame, or a mask of another shape.
    """
    _check_mask("video", frames, frame_mask)
    padded = (frame_mask == 0)[..., None]
    frames = frames.masked_fill(padded, 0.0)
    gram = frames @ frames.transpose(1, 2)
    length = sentence.norm(dim=1).clamp(min=NORM_EPS)
    columns = []
    for block in _slices(len(frames), BLOCK // (frames.shape[1] * len(sentence))):
        product = (
            frames[block] @ sentence.T
        )  # (n, F, N_t): texts last, so that the sums over frames are rows
        weight = (product / temperature).masked_fill(padded[block], -torch.inf).softmax(dim=1)
        along = (weight * product).sum(dim=1)
        pooled = (weight * (gram[block] @ weight)).sum(dim=1).clamp(min=NORM_EPS**2).sqrt()
        columns.append((along / (pooled * length)).T)
    return torch.cat(columns, dim=1)


def concept_similarity(text_concepts: Tensor, video_concepts: Tensor) -> Tensor:
    """Local interaction: mean over queries of the cosine between matching concepts (Zhang et al.,
    2024).

    Args:
        text_concepts: (N_t, Q, D) float, any length.
        video_concepts: (N_v, Q, D) float; concept q of both sides comes from query q.

    Returns:
        (N_t, N_v) float.
    """
    text, video = (F.normalize(side, dim=-1).flatten(1) for side in (text_concepts, video_concepts))
    return text @ video.T / text_concepts.shape[1]


# --- HMMC: best frames
#  --------------------------------------------------------------------------------------


def topk_frame_similarity(
    sentence: Tensor, frames: Tensor, frame_mask: Tensor | None = None, *, k: int
) -> Tensor:
    """Mean cosine of the sentence with its k best frames in each video (Shen et al., 2023).

    Args:
        sentence: (N_t, D) float, any length.
        frames: (N_v, F, D) float, any length.
        frame_mask: (N_v, F) bool or number, non-zero where valid; None = all, as the released code
            takes it.
        k: frames that count; of a video with fewer valid ones, all.

    Returns:
        (N_t, N_v) float.

    Raises:
        ValueError: k below 1, a video without a valid frame, or a mask of another shape.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 frame, got {k}")
    if frame_mask is None:
        frame_mask = frames.new_ones(frames.shape[:2])
    _check_mask("video", frames, frame_mask)
    text, frames, valid = (
        F.normalize(sentence, dim=-1),
        F.normalize(frames, dim=-1),
        frame_mask != 0,
    )
    best = min(k, frames.shape[1])
    counted = valid.sum(dim=1).clamp(max=best)
    columns = []
    for block in _slices(len(frames), BLOCK // (frames.shape[1] * len(text))):
        scores = (frames[block] @ text.T).masked_fill(~valid[block][..., None], -torch.inf)
        top = scores.topk(best, dim=1).values
        top = top.masked_fill(top == -torch.inf, 0.0)  # fewer valid frames than k
        columns.append((top.sum(dim=1) / counted[block, None]).T)
    return torch.cat(columns, dim=1)
