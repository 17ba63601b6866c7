"""Ranks first, then what is read off them; and nDCG.

Ranks are counted, not found by looking a score up again, so a tie costs a stated amount and can
never add a query or lose one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tvrkit.files import expect
from tvrkit.settings import choose

DIRECTIONS = ("t2v", "v2t")
TIES = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}  # share of the tied that goes first
RECALLS = (1, 5, 10, 50)
RSUM = tuple(f"{direction} R@{k}" for direction in DIRECTIONS for k in (1, 5, 10))
CHUNK = 2**22  # matrix entries compared at a time


@dataclass(frozen=True)
class Rows:
    """A score matrix that is never held: rows of it are made when they are read.

    Attributes:
        shape: (N_t, N_v).
        make: slice or indices of n rows -> their scores (n, N_v).
    """

    shape: tuple[int, int]
    make: Callable[[Any], np.ndarray]

    def __getitem__(self, rows) -> np.ndarray:
        return np.asarray(self.make(rows), np.float32)


class Rivals(NamedTuple):
    """How many candidates stand against each query's best match: what every tie rule reads.

    Attributes:
        better: (N_q,) int64, those that score higher.
        tied: (N_q,) int64, those that score exactly the same and are no matches.
    """

    better: np.ndarray
    tied: np.ndarray

    def ranks(self, ties: str) -> np.ndarray:
        """(N_q,) 1 + better + the rule's share of the tied; see `retrieval_ranks`."""
        ranks = 1 + self.better + TIES[choose("tie rule", ties, TIES)] * self.tied
        return ranks if ties == "mean" else ranks.astype(np.int64)


def retrieval_ranks(similarity, positives=None, *, ties: str = "pessimistic") -> np.ndarray:
    """Rank of each query's best match: 1 + number of better candidates + share of the tied ones.

    Scores are compared in float32. Of several matches the best one is ranked; the others are not in
    its way. Only what `positives` names is a match: a candidate of the same meaning counts against
    it like any other.

    Args:
        similarity: (N_q, N_c) scores of queries (rows) and candidates, array or tensor, higher is
            better.
        positives: the matches: None = the diagonal; (N_q, N_c) bool; (N_q,) int, one candidate
            each; or a sequence of N_q int arrays.
        ties: of the candidates that score exactly like the match, all go first ("pessimistic"),
            none ("optimistic"), or half ("mean": expected when ties are broken at random).

    Returns:
        (N_q,) ranks from 1, int64; float64 for "mean".

    Raises:
        ValueError: NaN (its first query is named), a query without a match, or positives that do
            not fit.
    """
    return count_rivals(similarity, positives).ranks(ties)


def count_rivals(similarity, positives=None) -> Rivals:
    """Counts behind `retrieval_ranks`, under all tie rules at once; arguments and errors as there.
    The matrix may be `Rows`, or lie in a file: it is read once, a block of rows at a time."""
    scores = score_matrix(similarity)
    queries, candidates = _pairs(positives, scores.shape)
    edges = np.searchsorted(queries, np.arange(scores.shape[0] + 1))
    better, tied = np.empty((2, scores.shape[0]), np.int64)
    for rows, block in blocks(scores):
        pairs, starts = slice(edges[rows.start], edges[rows.stop]), edges[rows] - edges[rows.start]
        row = queries[pairs] - rows.start
        matches = block[row, candidates[pairs]]
        best = np.maximum.reduceat(matches, starts)
        better[rows] = (block > best[:, None]).sum(1)
        tied[rows] = (block == best[:, None]).sum(1) - np.bincount(row, matches == best[row])
    return Rivals(better, tied)  # a match is in nobody's way


def count_video_rivals(similarity, video_of_caption) -> tuple[Rivals, Rivals]:
    """Counts of the other direction, videos as queries, from blocks of captions too (read twice).

    Args:
        similarity: (N_t, N_v) of captions and videos, as in `count_rivals`.
        video_of_caption: (N_t,) int, the video of each caption; every video has one.

    Returns:
        Of each video among the N_v videos' captions, each video scoring as its best one ("max over
        captions": CLIP4Clip, HMMC), and of its best own caption among all N_t ("first hit").
    """
    scores, owner = score_matrix(similarity), np.asarray(video_of_caption)
    order, edges = _by_video(owner, scores.shape[1])
    matches = [block[np.arange(len(block)), owner[rows]] for rows, block in blocks(scores)]
    own = np.concatenate(matches)[order]
    best = np.maximum.reduceat(own, edges[:-1])
    counts = np.zeros((4, len(best)), np.int64)
    videos = max(1, CHUNK // (len(best) * np.diff(edges).max()))
    for first in range(0, len(best), videos):
        inside = edges[first : first + videos + 1]
        block = scores[order[inside[0] : inside[-1]]]
        grouped = np.maximum.reduceat(block, inside[:-1] - inside[0])
        for place, side in ((0, grouped), (2, block)):
            counts[place] += (side > best).sum(0)
            counts[place + 1] += (side == best).sum(0)
    counts[1] -= 1
    counts[3] -= np.add.reduceat(own == np.repeat(best, np.diff(edges)), edges[:-1], dtype=int)
    return Rivals(*counts[:2]), Rivals(*counts[2:])


def retrieval_metrics(ranks) -> dict[str, float]:
    """What papers print: R@1, R@5, R@10, R@50 in percent of queries, MdR and MnR (median, mean
    rank).

    MdR is the usual median, the mean of the two middle ranks of an even count; released HMMC and
    GLSCL take the lower one on multi-caption sets. Ranks 1, 2, 7, 30 give R@1 25, R@5 50, R@10 75,
    MdR 4.5, MnR 10.

    Args:
        ranks: (N_q,) of `retrieval_ranks`.

    Raises:
        ValueError: no ranks, or one below 1.
    """
    ranks = np.asarray(ranks)
    got = f"{ranks.size} from {ranks.min(initial=1)}"
    expect(ranks.size and ranks.min() >= 1, "ranks", "one or more, none below 1", got)
    recalls = {f"R@{k}": 100.0 * int((ranks <= k).sum()) / ranks.size for k in RECALLS}
    return {**recalls, "MdR": float(np.median(ranks)), "MnR": float(ranks.mean())}


def metrics_of_directions(ranks: dict[str, np.ndarray]) -> dict[str, float]:
    """`retrieval_metrics` of both directions under flat names, and `rsum`.

    Args:
        ranks: "t2v" (N_t,) and "v2t" (N_v,).

    Returns:
        "t2v R@1" ... "t2v MnR", "v2t R@1" ... "v2t MnR", and "rsum", the sum of R@1, R@5 and R@10
        of both directions.
    """
    metrics: dict[str, float] = {}
    for direction in DIRECTIONS:
        metrics |= prefixed(direction, retrieval_metrics(ranks[direction]))
    return metrics | {"rsum": math.fsum(metrics[name] for name in RSUM)}


def prefixed(prefix: str, values: dict) -> dict:
    """`values` under longer names: "t2v R@1" for "R@1"."""
    return {f"{prefix} {name}": value for name, value in values.items()}


def ndcg(similarity, relevance, *, k: int | None = None) -> np.ndarray:
    """Normalised discounted cumulative gain per query, for graded relevance.

    DCG = sum over places r of relevance_r / log2(1 + r), divided by the DCG of the best order
    (Järvelin and Kekäläinen, 2002, linear gain). Of tied candidates the least relevant goes first
    (pessimistic).

    Args:
        similarity: (N_q, N_c).
        relevance: (N_q, N_c), 0 = irrelevant, higher is better.
        k: only the first k places count; None = all.

    Returns:
        (N_q,) float64 in 0..1.

    Raises:
        ValueError: NaN, a negative relevance, or a query to which nothing is relevant.
    """
    scores, relevance = score_matrix(similarity), np.asarray(relevance, dtype=np.float64)
    if scores.shape != relevance.shape:
        raise ValueError(f"expected relevance of shape {scores.shape}, got {relevance.shape}")
    discount = 1 / np.log2(2 + np.arange(scores.shape[1]))[:k]
    values = np.empty(len(scores))
    for rows, block in blocks(scores):
        gain = relevance[rows]
        bad = ~(gain >= 0).all(1) | ~(gain > 0).any(1)
        if bad.any():
            query = rows.start + int(bad.argmax())
            raise ValueError(f"query {query}: NaN, negative or no relevance")
        gained = np.take_along_axis(gain, np.lexsort((gain, -block))[:, :k], 1) @ discount
        values[rows] = gained / (-np.sort(-gain, axis=1)[:, :k] @ discount)
    return values


def score_matrix(similarity) -> Any:
    """(N_q, N_c) float32 array of scores, from an array or a tensor; `Rows` as they are.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    if isinstance(similarity, Rows):
        return similarity
    if isinstance(similarity, torch.Tensor):
        similarity = similarity.detach().float().cpu().numpy()
    scores = np.asarray(similarity, dtype=np.float32)
    whole = scores.ndim == 2 and scores.size
    expect(whole, "similarity", "a matrix (N_q, N_c), not empty", f"shape {scores.shape}")
    return scores


def blocks(scores) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows and their scores, CHUNK entries at a time.

    Raises:
        ValueError: NaN; its first row is named.
    """
    rows = max(1, CHUNK // scores.shape[1])
    for start in range(0, scores.shape[0], rows):
        part = slice(start, min(start + rows, scores.shape[0]))
        block = scores[part]
        bad = np.isnan(block).any(1)
        if bad.any():
            query = start + int(bad.argmax())
            raise ValueError(f"similarity of query {query} holds NaN: it has no rank")
        yield part, block


def _by_video(video_of_caption: np.ndarray, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Captions sorted by video, and where each video's begin and the last one's end."""
    counts = np.bincount(video_of_caption, minlength=videos)
    some = np.count_nonzero(counts)
    expect(len(counts) == some == videos, "captions", f"some of each of {videos} videos", some)
    return np.argsort(video_of_caption, kind="stable"), np.append(0, np.cumsum(counts))


def _pairs(positives, shape: tuple[int, int]) -> np.ndarray:
    """Every (query, match) once, sorted by query: (2, N) int64."""
    rows, columns = shape
    if positives is None:
        if rows != columns:
            sizes = f"{rows} queries, {columns} candidates"
            raise ValueError(f"{sizes}: not one-to-one, name the positives")
        positives = np.arange(rows)
    if isinstance(positives, torch.Tensor):
        positives = positives.cpu().numpy()
    expect(len(positives) == rows, "ranks", f"positives of {rows} queries", len(positives))
    if isinstance(positives, np.ndarray) and positives.dtype == bool:
        expect(positives.shape == shape, "bool positives", f"shape {shape}", positives.shape)
        positives = [np.flatnonzero(row) for row in positives]
    groups = [np.atleast_1d(group) for group in positives]
    matches = [len(group) for group in groups]
    if 0 in matches:
        raise ValueError(f"query {matches.index(0)} has no match among the candidates")
    queries, candidates = np.repeat(np.arange(rows), matches), np.concatenate(groups)
    low, high = candidates.min(), candidates.max()
    expect(low >= 0 and high < columns, "positives", f"0..{columns - 1}", f"{low}..{high}")
    return np.unique(np.stack([queries, candidates]), axis=1).astype(np.int64)
