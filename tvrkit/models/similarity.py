"""Similarities between texts and videos: exact, differentiable, cosine scale.

Each score has its plain form (`*_plain`), which builds the product of all pairs and is what the
equation says, and below it the fast form, chunked to a memory bound.

Shapes: N_t texts, N_v videos, L words, F frames, D width. Masks are non-zero at valid tokens.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvrkit.data.batch import readable
from tvrkit.files import expect
from tvrkit.settings import choose

MaskFill = Literal["zero", "exclude"]
Look = tuple[Tensor, Tensor]  # gain and index, see `second_look`
BLOCK = 2**22  # floats in a similarity's largest block (16 MB): fastest on 2 cores, D 512
TILE = 2**21  # of a product that is read more than once: it stays in the cache (8 MB)
ROWS = 704  # of a matrix product: with fewer the product itself slows down
NORM_EPS = 1e-8  # shortest length that a vector is divided by, as in torch's cosine_similarity


# --- DMAE: token-wise interaction


def token_weight(
    tokens: Tensor, mask: Tensor, head: nn.Linear | None = None, *, renormalise: bool = True
) -> Tensor:
    """What each token counts: mask / sum(mask) (TI), or softmax(head(tokens)) x mask (WTI).

    Args:
        tokens: (N, L, D) float.
        mask: (N, L), 0 = padding, 2 = boosted by textual attention.
        head: the learned weight, D -> 1; None = TI.
        renormalise: the weights sum to 1 although words are boosted; released: they do not (finding
            9).

    Returns:
        (N, L) float, 0 at padding.
    """
    if head is None:
        return mask / mask.sum(dim=1, keepdim=True)
    weight = head(tokens)[..., 0].masked_fill(mask == 0, -torch.inf).softmax(dim=1) * mask
    return weight / weight.sum(dim=1, keepdim=True) if renormalise else weight


def token_interaction_plain(
    text: Tensor, video: Tensor, text_mask: Tensor, video_mask: Tensor
) -> Tensor:
    """`token_interaction` with TI weights, the second look, and padding excluded."""
    p, q = token_weight(text, text_mask), token_weight(video, video_mask)
    product = torch.einsum("ald,bfd->ablf", text, video)
    best_frame, best = product.masked_fill(video_mask[:, None] == 0, -torch.inf).max(dim=3)
    best_word = product.masked_fill(text_mask[:, None, :, None] == 0, -torch.inf).amax(dim=2)
    gain, near = second_look(video, video_mask, mask_fill="exclude")
    own = torch.arange(len(video))[:, None]
    second = gain[own, best] * product.gather(3, near[own, best][..., None])[..., 0]
    text_side = torch.einsum("abl,al->ab", best_frame + 0.5 * second, p)
    return (text_side + torch.einsum("abf,bf->ab", best_word, q)) / 2


def token_interaction(
    text: Tensor,
    video: Tensor,
    text_mask: Tensor,
    video_mask: Tensor,
    *,
    text_weight: Tensor | None = None,
    video_weight: Tensor | None = None,
    second_frame: bool | Look = False,
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
    x F tensor is built and no product is spent on padding. A chunk holds about `TILE` floats.

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
        ValueError: a text or a video without a valid token (not on a GPU: see `readable`), or mask
            shapes that do not fit.
    """
    _check_mask("text", text, text_mask)
    _check_mask("video", video, video_mask)
    frames = fill_padding(video, video_mask, mask_fill)
    p = token_weight(text, text_mask) if text_weight is None else text_mask * text_weight
    q = token_weight(video, video_mask) if video_weight is None else video_mask * video_weight
    p, q = p.to(text.dtype), q.to(text.dtype)
    if second_frame is True:
        second_frame = second_look(video, video_mask, mask_fill=mask_fill)

    texts = list(_packed(text, text_mask != 0, p, mask_fill))
    order = torch.cat([rows for rows, *_ in texts]).argsort()

    def columns(block: slice) -> Tensor:
        look = (second_frame[0][block], second_frame[1][block]) if second_frame else None
        flat = frames[block].transpose(0, 1).flatten(0, 1).T  # videos last: maxima run along rows
        scores = []
        for _, words, weight, padded in texts:
            product = (words @ flat).view(*weight.shape, frames.shape[1], -1)
            scores.append(_interact(product, weight, q[block], look, padded))
        return torch.cat(scores)[order]

    rows, block = (ROWS, TILE) if readable(text) else (text_mask.numel(), BLOCK)
    return _in_blocks(columns, len(video), block // (rows * video.shape[1]))


def second_look(video: Tensor, video_mask: Tensor, *, mask_fill: MaskFill = "zero") -> Look:
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
    # A padded frame stands for the first valid one, with its second look.
    if mask_fill == "exclude":
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
    if choose("mask_fill", mask_fill, get_args(MaskFill)) == "zero":
        return video.masked_fill(video_mask.eq(0)[..., None], 0.0)
    return video.gather(1, _frame_source(video_mask)[..., None].expand_as(video))


def _packed(text: Tensor, valid: Tensor, p: Tensor, mask_fill: MaskFill) -> Iterator[tuple]:
    """Texts of equal length together, without padding, about `ROWS` words at a time: which texts,
    their words (n words, D) and weights (n, words), and whether a zero competes with them."""
    if not readable(text):  # nor are lengths: padding is multiplied too, and changes nothing
        words = fill_padding(text, valid, mask_fill).flatten(0, 1)
        yield torch.arange(len(text), device=text.device), words, p, False
        return
    length = valid.sum(1)
    for words in length.unique().tolist():
        padded = mask_fill == "zero" and words < text.shape[1]
        for rows in (length == words).nonzero()[:, 0].split(max(1, ROWS // words)):
            row, word = valid[rows].nonzero(as_tuple=True)
            weight = p[rows[row], word].view(len(rows), words)
            yield rows, text[rows[row], word], weight, padded


def _interact(product: Tensor, p: Tensor, q: Tensor, look: Look | None, padded: bool) -> Tensor:
    """(n, N_v) scores from the products (n, words, F, N_v) of texts that have `words` valid words
    each; where they are `padded`, a zero competes with them."""
    best_frame, first = _max_over_frames(product)
    best_word = product.amax(dim=1)
    if padded:
        best_word = best_word.clamp(min=0)
    if look:  # per word and video: the frame it looks at next, and how much that counts
        gain, near = (table.T.gather(0, first.flatten(0, 1)) for table in look)
        second = product.flatten(0, 1).gather(1, near[:, None]).view_as(best_frame)
        best_frame = torch.addcmul(best_frame, gain.view_as(best_frame), second, value=0.5)
    text_side = (p[:, None] @ best_frame)[:, 0]
    return (text_side + (best_word * q.T).sum(dim=1)) / 2


def _max_over_frames(product: Tensor) -> tuple[Tensor, Tensor]:
    """`product.max(dim=2)` of (n, words, F, N_v). Pooling has a vectorised kernel for it, 15 times
    faster on CPU."""
    n, words, frames, videos = product.shape
    columns = product.view(n * words, frames, 1, videos).permute(0, 3, 1, 2)  # channels last
    value, index = F.max_pool2d(columns, (frames, 1), return_indices=True)
    return value.reshape(n, words, videos), index.reshape(n, words, videos)


def _frame_source(mask: Tensor) -> Tensor:
    """(N_v, F) int64: each valid frame itself, each padded one the first valid frame of its
    video."""
    valid = mask != 0
    own = torch.arange(mask.shape[1], device=mask.device).expand_as(valid)
    return torch.where(valid, own, valid.int().argmax(dim=1, keepdim=True))


def _check_mask(side: str, tokens: Tensor, mask: Tensor) -> None:
    expected, shape = tuple(tokens.shape[:2]), tuple(mask.shape)
    expect(shape == expected, f"{side} mask", f"shape {expected}", shape)
    empty = (mask != 0).sum(1) == 0
    if readable(mask):
        first = int(empty.int().argmax())
        expect(not empty.any(), f"{side} {first}", "a valid token", "none")


def _in_blocks(columns: Callable[[slice], Tensor], videos: int, size: int) -> Tensor:
    """The columns of all videos, from blocks of `size` of them, at least one."""
    starts = range(0, videos, max(1, size))
    return torch.cat([columns(slice(start, start + starts.step)) for start in starts], dim=1)


# --- GLSCL: text-conditioned pooling and concepts


def conditioned_pooling_plain(
    sentence: Tensor, frames: Tensor, frame_mask: Tensor, *, temperature: float
) -> Tensor:
    """`conditioned_pooling` from the pooled features of all pairs, N_t x N_v x D floats."""
    product = torch.einsum("ad,bfd->abf", sentence, frames)
    weight = (product / temperature).masked_fill(frame_mask == 0, -torch.inf).softmax(dim=2)
    pooled = torch.einsum("abf,bfd->abd", weight, frames)
    return torch.cosine_similarity(sentence[:, None], pooled, dim=2)


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

    def columns(block: slice) -> Tensor:
        product = frames[block] @ sentence.T  # (n, F, N_t), texts last: sums over frames are rows
        weight = (product / temperature).masked_fill(padded[block], -torch.inf).softmax(dim=1)
        along = (weight * product).sum(dim=1)
        pooled = (weight * (gram[block] @ weight)).sum(dim=1).clamp(min=NORM_EPS**2).sqrt()
        return (along / (pooled * length)).T

    return _in_blocks(columns, len(frames), BLOCK // (frames.shape[1] * len(sentence)))


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


def topk_frame_similarity_plain(
    sentence: Tensor, frames: Tensor, frame_mask: Tensor, *, k: int
) -> Tensor:
    """`topk_frame_similarity` from the cosines of all pairs; all videos have k valid frames."""
    text, frames = F.normalize(sentence, dim=-1), F.normalize(frames, dim=-1)
    cosine = torch.einsum("ad,bfd->abf", text, frames).masked_fill(frame_mask == 0, -torch.inf)
    return cosine.topk(k, dim=2).values.mean(dim=2)


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
    expect(k >= 1, "k", "at least 1 frame", k)
    if frame_mask is None:
        frame_mask = frames.new_ones(frames.shape[:2])
    _check_mask("video", frames, frame_mask)
    text, frames = F.normalize(sentence, dim=-1), F.normalize(frames, dim=-1)
    valid, best = frame_mask != 0, min(k, frames.shape[1])
    counted = valid.sum(dim=1).clamp(max=best)

    def columns(block: slice) -> Tensor:
        scores = (frames[block] @ text.T).masked_fill(~valid[block][..., None], -torch.inf)
        top = scores.topk(best, dim=1).values
        top = top.masked_fill(top == -torch.inf, 0.0)  # fewer valid frames than k
        return (top.sum(dim=1) / counted[block, None]).T

    return _in_blocks(columns, len(frames), BLOCK // (frames.shape[1] * len(text)))
