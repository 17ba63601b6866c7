"""Telling a difference from noise: bootstrap intervals, paired tests and verdicts, all from
per-query ranks.

Captions of one video share its luck, so videos (clusters), not captions, are resampled or swapped.
Gallery
and trained weights are taken as given: what other training seeds would do, `compare_seeds` asks.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from tvrkit.evaluation.ranks import RECALLS, retrieval_metrics
from tvrkit.settings import choose

ALPHA = 0.05  # two-sided level of every interval and verdict
HITS = {f"R@{k}": k for k in RECALLS}
CHUNK = 2**22  # resample x query entries held at a time


def bootstrap_metrics(
    ranks, clusters=None, *, resamples: int = 2000, seed: int = 0
) -> dict[str, np.ndarray]:
    """`retrieval_metrics` of resampled queries (Efron, 1979; cluster bootstrap where `clusters` are
    given).

    Two calls with one seed and equally many clusters draw the same ones: t2v (captions clustered by
    video) and v2t (one query per video) may be added sample by sample.

    Args:
        ranks: (N,) of `retrieval_ranks`.
        clusters: (N,) labels, queries of one label (C in all) are drawn together; None = each on
            its own.
        resamples: R, how often C clusters are drawn with replacement.
        seed: of the draws.

    Returns:
        For each metric (R,) float64.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    labels = _labels(clusters, len(ranks))
    names = list(retrieval_metrics(ranks))
    order = np.argsort(ranks, kind="stable")
    blocks = [
        _weighted_metrics(ranks[order], drawn[:, labels[order]])
        for drawn in _draws(labels.max() + 1, len(ranks), resamples, seed)
    ]
    return dict(zip(names, np.concatenate(blocks, axis=1), strict=True))


def interval(samples, *, alpha: float = ALPHA) -> list[float]:
    """[low, high], the percentile interval of bootstrap samples that covers 1 - `alpha`.

    A recall of exactly 0 or 100 gets no width: resampling can't show what no query did.
    """
    return [float(bound) for bound in np.quantile(samples, [alpha / 2, 1 - alpha / 2])]


def ratio_interval(
    over, under, clusters=None, *, alpha: float = ALPHA, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """sum(over) / sum(under) and its percentile bootstrap interval (low, high), clusters resampled.

    Shares and means of what comes in unequal numbers per query: of the mined pairs, how many are
    right.

    Args:
        over: (N,) float, per query.
        under: (N,) float >= 0, per query.
        clusters: (N,) labels, see `bootstrap_metrics`.

    Returns:
        All NaN where `under` sums to 0. Draws in which it does are left out.
    """
    over, under = np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)
    if not under.sum():
        return np.nan, np.nan, np.nan
    labels = _labels(clusters, len(over))
    sums = np.stack([np.bincount(labels, over), np.bincount(labels, under)], axis=1)
    drawn = np.concatenate([draw @ sums for draw in _draws(len(sums), len(sums), resamples, seed)])
    drawn = drawn[drawn[:, 1] > 0]
    low, high = interval(drawn[:, 0] / drawn[:, 1], alpha=alpha)
    return float(over.sum() / under.sum()), low, high


def compare_ranks(
    a,
    b,
    clusters=None,
    *,
    metric: str = "R@1",
    alpha: float = ALPHA,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """Is run a better than run b? From both runs' ranks of the same queries.

    Args:
        a: (N,) ranks.
        b: (N,) ranks of the same queries in the same order.
        clusters: (N,) labels, see `bootstrap_metrics`.
        metric: R@1, R@5, R@10 or R@50.
        alpha: level of the verdict and of the interval.
        resamples: swaps behind the p-value and draws behind the interval.
        seed: of both.

    Returns:
        `difference` a - b in percentage points; its interval `low`, `high`, bootstrap over
        clusters; `wins` and `losses`, queries that only a or only b finds within K; `effect`, the
        difference in queries; `queries`, N; `p_value` of the paired permutation test over clusters;
        `p_mcnemar` of the exact McNemar test, which takes queries as independent: right for
        clusters of one only; `verdict` by `p_value`: "better" (a than b), "worse" or "can't tell".

    Raises:
        ValueError: the runs do not have the same number of queries, or the metric is none of the
            four.
    """
    k = HITS[choose("metric", metric, HITS)]
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected ranks of the same queries, got shapes {a.shape} and {b.shape}")
    labels = _labels(clusters, len(a))
    gain = (a <= k).astype(np.int64) - (b <= k)
    by_cluster, sizes = np.bincount(labels, gain), np.bincount(labels)
    draws = _draws(len(sizes), len(sizes), resamples, seed)
    samples = np.concatenate([100 * (drawn @ by_cluster) / (drawn @ sizes) for drawn in draws])
    p_value = sign_flip_test(by_cluster, resamples=resamples, seed=seed)
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    mcnemar = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    difference, (low, high) = 100 * float(gain.mean()), interval(samples, alpha=alpha)
    row = {"difference": difference, "low": low, "high": high, "effect": wins - losses}
    row |= {"wins": wins, "losses": losses, "queries": len(gain)}
    row |= {"p_value": p_value, "p_mcnemar": mcnemar}
    return row | {"verdict": verdict(difference, p_value, alpha)}


def verdict(difference: float, p_value: float, alpha: float = ALPHA) -> str:
    """The word for it: "better", "worse", or "can't tell" where `p_value` is not below `alpha`."""
    if not p_value < alpha:
        return "can't tell"
    return "better" if difference > 0 else "worse"


def sign_flip_test(differences, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test: the two runs of each pair are swapped at
    random.

    p = (1 + swaps at least as extreme as what came) / (1 + resamples). The sum is drawn as one
    binomial per distinct size of difference, which has the distribution of one coin per pair.

    Args:
        differences: (C,) integer differences a - b, one per independent pair.
    """
    differences = np.asarray(differences)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    heads = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    flipped = (2 * heads - counts) @ sizes
    return float((1 + (np.abs(flipped) >= np.abs(differences.sum())).sum()) / (1 + resamples))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) adjusted p-values: below alpha, the chance of any false finding among all is
    too."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted[np.argsort(order)]


def with_verdicts(table: pd.DataFrame, alpha: float = ALPHA) -> pd.DataFrame:
    """A table of differences and p-values, with `p_holm`, adjusted over its rows, and
    `verdict`."""
    table = table.assign(p_holm=holm(table["p_value"]))
    pairs = zip(table["difference"], table["p_holm"], strict=True)
    return table.assign(verdict=[verdict(*pair, alpha) for pair in pairs])


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and their sample standard deviation, NaN for a single seed."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return float(np.mean(values)), deviation


def compare_seeds(a: Sequence[float], b: Sequence[float], *, alpha: float = ALPHA) -> dict:
    """Is method a better than b over training seeds? Welch's t test on one number (higher = better)
    per seed.

    `compare_ranks` answers for two sets of weights, this for two recipes: it needs many seeds.

    Returns:
        `difference` of the means, its interval `low`, `high`, `p_value`, `verdict`.

    Raises:
        ValueError: fewer than two seeds on a side: their spread is unknown.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"expected two seeds or more on each side, got {len(a)} and {len(b)}")
    test = stats.ttest_ind(a, b, equal_var=False)
    difference, bounds = float(np.mean(a) - np.mean(b)), test.confidence_interval(1 - alpha)
    row = {"difference": difference, "low": float(bounds.low), "high": float(bounds.high)}
    p_value = float(test.pvalue)
    return row | {"p_value": p_value, "verdict": verdict(difference, p_value, alpha)}


def _labels(clusters, queries: int) -> np.ndarray:
    """(N,) int in 0..C-1."""
    clusters = np.arange(queries) if clusters is None else np.asarray(clusters)
    if clusters.shape != (queries,):
        raise ValueError(f"expected clusters of {queries} queries, got shape {clusters.shape}")
    return np.unique(clusters, return_inverse=True)[1]


def _draws(clusters: int, width: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster was drawn, (rows, C) at a time; the draws do not depend on `width`."""
    rng, rows = np.random.default_rng(seed), max(1, CHUNK // width)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)


def _weighted_metrics(ranks: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`retrieval_metrics` of sorted ranks (N,) that occur `weight` (R, N) times: (metrics, R)."""
    reached = weight.cumsum(1)
    total = reached[:, -1]
    place = np.searchsorted(ranks, RECALLS, side="right")
    recalls = 100 * np.where(place, reached[:, place - 1], 0).T / total
    low, high = ((reached > middle[:, None]).argmax(1) for middle in ((total - 1) // 2, total // 2))
    return np.vstack([recalls, (ranks[low] + ranks[high]) / 2, weight @ ranks / total])
