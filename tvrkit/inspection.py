"""Is what a model looks at, or mines, the right thing? Arithmetic of the notebooks, scored on shapes' truth.

Arrays in, numbers and tables out; figures are in `tvrkit.viz`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from tvrkit.config import DataConfig
from tvrkit.data.decode import sample
from tvrkit.data.manifest import Manifest
from tvrkit.data.shapes import Truth

Span = tuple[int, int]


def frames_seen(manifest: Manifest, data: DataConfig, video_id: str) -> tuple[np.ndarray, np.ndarray]:
    """What an evaluation under these settings sees of a video: (F,) stored indices, (F, H, W, 3) uint8."""
    indices = sample(data.eval_sampling, manifest.frames.count(video_id), data.max_frames)
    return indices, manifest.frames.read(video_id, indices)


def word_spans(caption: str) -> list[Span]:
    """(start, end) of the caption's words, end excluded; of its characters where it has no blanks (zh)."""
    if " " not in caption:
        return [(place, place + 1) for place in range(len(caption))]
    words, place = [], 0
    for word in caption.split():
        start = caption.index(word, place)
        place = start + len(word)
        words.append((start, place))
    return words


def overlapping(spans: Sequence[Span], others: Sequence[Sequence]) -> np.ndarray:
    """(S,) bool: whether each of S spans shares a character with any of `others` (they begin start, end)."""
    return _shared(spans, [other[:2] for other in others]).any(axis=1)


def _shared(spans: Sequence[Span], others: Sequence[Span]) -> np.ndarray:
    """(S, O) bool: which spans share a character."""
    starts, ends = np.array(spans, int).reshape(-1, 2).T
    other_starts, other_ends = np.array(others, int).reshape(-1, 2).T
    return (starts[:, None] < other_ends) & (other_starts < ends[:, None])


def per_word(values, tokens: Sequence[tuple[int, Span]], words: Sequence[Span]) -> np.ndarray:
    """Values of tokens summed over the tokens of each word.

    Args:
        values: (L,) float, one per token column.
        tokens: (column, span) of the caption's tokens, see `tvrkit.data.text.token_spans`.
        words: spans of the W words.

    Returns:
        (W,) float; 0 for a word that was cut off.
    """
    columns = [column for column, _ in tokens]
    belongs = _shared(words, [span for _, span in tokens])
    return belongs @ np.asarray(values, float)[columns]


def telling_words(truth: Truth, caption_id: str, caption: str, video_id: str) -> np.ndarray:
    """(W,) bool: the caption's words that name a factor in which its own video differs from `video_id`."""
    own, other = truth.factors.loc[truth.captions.video_id[caption_id]], truth.factors.loc[video_id]
    named = [span for span in truth.attribute_words(caption_id) if own[span[2]] != other[span[2]]]
    return overlapping(word_spans(caption), named)


def auc(scores, truth) -> float:
    """Probability that a true item scores above a false one, ties counting half (Mann-Whitney); 0.5 = chance.

    Args:
        scores: (N,) float.
        truth: (N,) bool.

    Returns:
        NaN where `truth` has one class only.
    """
    truth = np.asarray(truth, bool)
    true, false = int(truth.sum()), int((~truth).sum())
    if not true or not false:
        return float("nan")
    ranks = stats.rankdata(np.asarray(scores, float))
    return float((ranks[truth].sum() - true * (true + 1) / 2) / (true * false))


def mean_interval(values, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of the values that are not NaN and its 95 % percentile bootstrap interval (low, high).

    Raises:
        ValueError: fewer than two such values.
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        raise ValueError(f"expected two values or more that are not NaN, got {len(values)}")
    if np.ptp(values) == 0:
        return (float(values[0]),) * 3
    options = {"n_resamples": resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    bounds = stats.bootstrap((values,), np.mean, **options).confidence_interval
    return float(values.mean()), float(bounds.low), float(bounds.high)


def mining_quality(mined, wanted, false) -> dict[str, float]:
    """How good a set of mined negatives is.

    Args:
        mined: (N_t, N_v) bool.
        wanted: (N_t, N_v) bool, the true hard negatives.
        false: (N_t, N_v) bool, pairs that match although they are not labelled so.

    Returns:
        pairs (number mined), per_text, precision and recall of `wanted` in percent, false_negatives in
        percent of the mined; NaN where nothing was mined or wanted.
    """
    mined, wanted, false = (np.asarray(mask, bool) for mask in (mined, wanted, false))
    pairs, hits = int(mined.sum()), int((mined & wanted).sum())
    return {
        "pairs": pairs,
        "per_text": pairs / len(mined),
        "precision": 100 * hits / pairs if pairs else float("nan"),
        "recall": 100 * hits / int(wanted.sum()) if wanted.any() else float("nan"),
        "false_negatives": 100 * int((mined & false).sum()) / pairs if pairs else float("nan"),
    }


def pair_kinds(truth: Truth, caption_ids, video_ids, video_of_caption) -> dict[str, np.ndarray]:
    """Kinds of text-video pairs by what is true of them, (N_t, N_v) bool each.

    "match" is the caption's own video; "same meaning" another one of which all is true that the caption says
    (a duplicate, or a neighbour that differs in what the caption leaves out); "one factor apart" one that
    differs in one factor, which the caption names; "other" the rest.
    """
    match = np.asarray(video_of_caption)[:, None] == np.arange(len(video_ids))[None, :]
    fits = truth.relevance(caption_ids, video_ids) == 1
    near = truth.differing_factors(caption_ids, video_ids) == 1
    kinds = {"match": match, "same meaning": ~match & fits, "one factor apart": ~match & ~fits & near}
    return {**kinds, "other": ~np.any(list(kinds.values()), axis=0)}
