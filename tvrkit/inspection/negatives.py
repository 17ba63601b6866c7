"""Hard negatives: how many are mined, how hard and how stable they are, and how many are no
negatives at all.

Masks are (N_t, N_v) bool over captions and videos; every number comes with a 95 % interval (value,
low, high), for which videos are resampled with all their captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from tvrkit.data.loader import text_loader, video_loader
from tvrkit.data.manifest import Split
from tvrkit.evaluation.statistics import ratio_interval
from tvrkit.losses.contrastive import neg_nce
from tvrkit.models.method import Method
from tvrkit.settings import Config

Interval = tuple[float, float, float]
Masks = Mapping[str, np.ndarray]
BLOCK = 256  # captions compared with all others at a time


def text_kinds(likeness: np.ndarray, video_of_caption, threshold: float) -> dict[str, np.ndarray]:
    """Kinds of pairs where nothing is known but the texts: "match", "near-duplicate caption" and
    "other".

    Args:
        likeness: (N_t, N_v) of `caption_likeness`.
        video_of_caption: (N_t,) int.
        threshold: a likeness of this or more makes a near duplicate: perhaps the video fits, nobody
            has looked.
    """
    match = np.asarray(video_of_caption)[:, None] == np.arange(likeness.shape[1])[None, :]
    return with_rest({"match": match, "near-duplicate caption": ~match & (likeness >= threshold)})


def with_rest(kinds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**kinds, "other": ~np.any(list(kinds.values()), axis=0)}


def caption_likeness(captions: Sequence[str], video_of_caption, *, size: int = 3) -> np.ndarray:
    """How like each caption is to the captions of each video: the largest cosine of their n-gram
    counts.

    Characters, not words: it serves languages without blanks, and forgives endings. A word is as
        long as it is, so a
    changed colour changes as much as a changed article: likeness finds repeats, it does not
    understand.

    Args:
        captions: N_t texts.
        video_of_caption: (N_t,) int; every video in 0..N_v-1 has one.
        size: characters of an n-gram.

    Returns:
        (N_t, N_v) float32 in 0..1; a caption's own video has 1.
    """
    owner, known = np.asarray(video_of_caption), {}
    texts = [
        " " * (size - 1) + " ".join(text.lower().split()) + " " * (size - 1) for text in captions
    ]
    grams = [
        [text[place : place + size] for place in range(len(text) - size + 1)] for text in texts
    ]
    columns = np.array([known.setdefault(gram, len(known)) for row in grams for gram in row])
    rows = np.repeat(np.arange(len(grams)), [len(row) for row in grams])
    counts = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)))
    counts = (
        sparse.diags_array(1 / np.sqrt(counts.multiply(counts).sum(axis=1))).astype(np.float32)
        @ counts
    )
    order = np.argsort(owner, kind="stable")
    starts, others = (
        np.searchsorted(owner[order], np.arange(owner.max() + 1)),
        counts[order].T.tocsr(),
    )
    blocks = [slice(start, start + BLOCK) for start in range(0, len(texts), BLOCK)]
    best = [
        np.maximum.reduceat((counts[block] @ others).toarray(), starts, axis=1) for block in blocks
    ]
    return np.concatenate(best).clip(0, 1)


def mining_quality(mined, video_of_caption, kinds: Masks) -> dict[str, Interval]:
    """How many pairs are mined, and which.

    Args:
        mined: (N_t, N_v) bool.
        video_of_caption: (N_t,) int.
        kinds: masks to hold it against.

    Returns:
        "mined per caption"; for each kind "kind, % of mined" (precision, where the kind is what is
        wanted) and "kind, % found" (recall). NaN where nothing is mined or of the kind.
    """
    count = mined.sum(axis=1)
    found = {"mined per caption": ratio_interval(count, np.ones(len(count)), video_of_caption)}
    for kind, mask in kinds.items():
        hits = 100 * (mined & mask).sum(axis=1)
        found[f"{kind}, % of mined"] = ratio_interval(hits, count, video_of_caption)
        found[f"{kind}, % found"] = ratio_interval(hits, mask.sum(axis=1), video_of_caption)
    return found


def over_training(
    mined: pd.DataFrame, epochs: Sequence[int], video_of_caption, kinds: Masks
) -> pd.DataFrame:
    """`mining_quality` after each epoch, how hard the mined pairs are, and how many stay.

    Args:
        mined: of `Run.mined`: epoch, row, column, excess.
        epochs: all of them in order, also those in which nothing was mined.
        video_of_caption: (N_t,) int, of the split that was mined.
        kinds: masks of that split.

    Returns:
        Rows of epoch, quantity, value, low, high. Beside `mining_quality`'s: "excess over the
        match", the mean; "mined again, %", of the pairs mined now or an epoch before those mined
        both times (Jaccard; none for the first epoch).
    """
    owner, shape = np.asarray(video_of_caption), next(iter(kinds.values())).shape
    mined = mined.astype(
        {"row": int, "column": int, "excess": float}
    )  # a table without rows is read as objects
    rows, before = [], None
    for epoch in epochs:
        table, now = mined[mined["epoch"] == epoch], np.zeros(shape, bool)
        now[table["row"], table["column"]] = True
        excess = np.bincount(table["row"], table["excess"], minlength=len(owner))
        found = mining_quality(now, owner, kinds)
        found["excess over the match"] = ratio_interval(excess, now.sum(axis=1), owner)
        if before is not None:
            both, either = (now & before).sum(axis=1), (now | before).sum(axis=1)
            found["mined again, %"] = ratio_interval(100 * both, either, owner)
        rows += [(epoch, quantity, *interval) for quantity, interval in found.items()]
        before = now
    return pd.DataFrame(rows, columns=["epoch", "quantity", "value", "low", "high"])


def push(similarity: Tensor, *, negative_weight: float, **options) -> tuple[np.ndarray, np.ndarray]:
    """How hard the loss pushes each pair apart, dL/dS_ij: by InfoNCE alone, and what NegNCE adds to
    it.

    Args:
        similarity: (B, B) float of matched pairs.
        negative_weight: of NegNCE; `options` are its others.

    Returns:
        Two (B, B) float64; positive lowers the score. What is added sums to 0 over the batch, for
        softmax gives back at the other entries of a row what it takes from the mined ones: only
        what is pushed harder is positive.
    """
    gradients = []
    for weight in (0.0, negative_weight):
        scores = similarity.detach().double().clone().requires_grad_()
        neg_nce(scores, negative_weight=weight, **options).backward()
        gradients.append(scores.grad.numpy())
    return gradients[0], gradients[1] - gradients[0]


@torch.inference_mode()
def embed(method: Method, split: Split, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Unit sentence vectors (N_t, D) and video vectors (N_v, D) of a split.

    A video is the method's own vector where it has one, else the mean of its frames: less than what
    a token-wise score looks at, but what one can draw.
    """
    device = method.backbone.logit_scale.device
    texts = [
        method.encode_text(batch.to(device)).sentence
        for batch in text_loader(split, config, method.backbone)
    ]
    videos = []
    for batch in video_loader(split, config, method.backbone):
        features = method.encode_video(batch.to(device))
        frames = F.normalize(features.frames, dim=-1) * features.mask[..., None]
        videos.append(frames.sum(dim=1) if features.video is None else features.video)
    return tuple(
        F.normalize(torch.cat(side).float(), dim=-1).cpu().numpy() for side in (texts, videos)
    )


def plane(texts: np.ndarray, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Texts (N_t, 2) and videos (N_v, 2) on the two main axes of both (PCA), and the share of
    variance they keep.

    Each side is centred by itself: between the two lies CLIP's modality gap, which says nothing
    about pairs and would be the first axis.
    """
    centred = [side - side.mean(axis=0) for side in (texts, videos)]
    _, spread, axes = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    axes = (
        axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(axis=1)].diagonal())[:, None]
    )  # the sign is free: fix it
    return *(side @ axes.T for side in centred), float((spread[:2] ** 2).sum() / (spread**2).sum())
