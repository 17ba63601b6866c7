"""Telling a difference from noise: bootstrap intervals, paired tests and verdicts, all from
per-query ranks.

Captions of one video share its luck, and so do videos that show one scene with a factor changed:
clusters of them, not captions, are resampled or swapped. A verdict is about these weights, or about
the recipe, which includes other seeds: `paired_test` has both.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy  # loads what is used of it, when it is used

from tvrkit.evaluation.ranks import RECALLS, retrieval_metrics

ALPHA = 0.05  # two-sided level of every interval and verdict
RESAMPLES = 2000
CHUNK = 2**22  # resample x query entries held at a time
GRID = 2**18  # steps of the largest sum that `sign_flip_test` tells apart
CANNOT_TELL = "can't tell"  # the verdict where chance would do as much
ONE_SEED = "one seed"  # and about a recipe that was trained once
UNTOLD = (CANNOT_TELL, ONE_SEED)


def bootstrap_metrics(
    ranks, clusters=None, *, resamples: int = RESAMPLES, seed: int = 0
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
    values, place = np.unique(ranks, return_inverse=True)
    # of each rank and cluster how many: a resample is then one product, exact in whole numbers
    held = scipy.sparse.csr_array((np.ones(len(ranks), np.int64), (place, labels)))
    blocks = [
        _weighted_metrics(values, held @ drawn.T)
        for drawn in _draws(held.shape[1], max(held.shape), resamples, seed)
    ]
    return dict(zip(names, np.concatenate(blocks, axis=1), strict=True))


def interval(samples) -> list[float]:
    """[low, high], the percentile interval of bootstrap samples that covers 1 - `ALPHA`.

    A recall of exactly 0 or 100 gets no width: resampling can't show what no query did.
    """
    return [float(bound) for bound in np.quantile(samples, [ALPHA / 2, 1 - ALPHA / 2])]


def ratio_interval(over, under, clusters=None) -> tuple[float, float, float]:
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
    drawn = np.concatenate([draw @ sums for draw in _draws(len(sums), len(sums))])
    drawn = drawn[drawn[:, 1] > 0]
    low, high = interval(drawn[:, 0] / drawn[:, 1])
    return float(over.sum() / under.sum()), low, high


def paired_test(a, b, sizes, *, point: float = 1.0) -> dict:
    """Is a better than b? From what each cluster of queries earns in each seed of both.

    Two questions, two p-values. About these *weights*: would swapping the two sides' answers at
    random, cluster by cluster, give as much (`sign_flip_test`)? About the *recipe*, which other
    seeds and other videos would be asked of: a t test whose error has three parts, the spread over
    the seeds of a, over those of b, and over the clusters; degrees of freedom as Welch and
    Satterthwaite have them. Luck that both seeds and clusters show counts twice: crossed random
    effects err on the side of "can't tell" (Owen, 2007).

        se^2 = point^2 (var_s(sum_c a_sc) / S_a + var_s(sum_c b_sc) / S_b + C / (C - 1) sum_c e_c^2)
        e_c = mean_s a_sc - mean_s b_sc - sizes_c sum_c(mean_s a_sc - mean_s b_sc) / sum_c sizes_c

    Args:
        a: (S_a, C) int, credits (queries found) of each seed in each cluster.
        b: (S_b, C) int, of the same clusters.
        sizes: (C,) how much of the test set each cluster is.
        point: percentage points that a credit is worth.

    Returns:
        `difference` a - b in points; `low`, `high`, its interval, over clusters and, where both
        sides have two seeds or more, over seeds too; `effect`, the difference in credits; `seeds`,
        the smaller number; `p_weights`; `p_recipe`, NaN where a side has one seed.
    """
    a, b, sizes = np.atleast_2d(a), np.atleast_2d(b), np.asarray(sizes)
    gain = a.mean(0) - b.mean(0)
    rest = gain - sizes * gain.sum() / sizes.sum()
    clusters = len(rest) * (rest @ rest) / max(len(rest) - 1, 1)
    parts, freedom = [clusters], [max(len(rest) - 1, 1)]
    seeds = min(len(a), len(b))
    if seeds > 1:
        parts += [side.sum(1).var(ddof=1) / len(side) for side in (a, b)]
        freedom += [len(side) - 1 for side in (a, b)]
    error = point * np.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / max(np.square(parts) @ (1 / np.array(freedom)), 1e-300)
    difference = point * float(gain.sum())
    reach = float(scipy.stats.t.ppf(1 - ALPHA / 2, max(degrees, 1)) * error)
    row = {"difference": difference, "low": difference - reach, "high": difference + reach}
    p_recipe = np.nan
    if seeds > 1:
        p_recipe = 2 * float(scipy.stats.t.sf(abs(difference) / error, degrees)) if error else 1.0
    p_weights = sign_flip_test(len(b) * a.sum(0) - len(a) * b.sum(0))
    about = {"effect": float(gain.sum()), "seeds": seeds}
    return row | about | {"p_weights": p_weights, "p_recipe": p_recipe}


def sign_flip_test(differences) -> float:
    """Two-sided p-value of the paired permutation test, exact: all 2^C ways to swap the two sides.

        p = P(|sum_c +-d_c| >= |sum_c d_c|), each sign a fair coin

    The distribution of the sum is built up difference by difference (a convolution over integers);
    where each is -1, 0 or 1 it is McNemar's exact test. Sums above `GRID` are rounded to a grid of
    that many steps.

    Args:
        differences: (C,) integer differences a - b, one per independent pair.
    """
    differences = np.asarray(differences, np.int64)
    sizes = np.abs(differences[differences != 0])
    step = max(math.gcd(*sizes.tolist()), -(-sizes.sum() // GRID)) if len(sizes) else 1
    differences, sizes = np.rint(differences / step), np.rint(sizes / step).astype(int)
    chance = np.eye(1, sizes.sum() + 1)[0]  # of each sum of those that keep their sign
    for size in sizes:
        chance[size:] = (chance[size:] + chance[: len(chance) - size]) / 2
        chance[:size] /= 2
    sums = np.abs(2 * np.arange(len(chance)) - len(chance) + 1)
    return float(min(1.0, chance[sums >= abs(differences.sum())].sum()))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) adjusted p-values: below alpha, the chance of any false finding among all is
    too."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted[np.argsort(order)]


def with_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `paired_test`s with verdicts in words, adjusted over all of its rows (Holm).

    A table is what a reader sees together: whoever reads all of its rows is misled with a chance of
    at most `ALPHA`. Rows that were not tested (difference NaN) get no verdict and do not count.

    Returns:
        The table with, for "weights" and "recipe", `holm_<it>` and the verdict `<it>`: "better",
        "worse", or "can't tell" where the adjusted p-value is not below `ALPHA`; "one seed" where
        there is none.
    """
    if "difference" not in table:
        return table
    gap, tested = table["difference"], table["difference"].notna()
    for about in ("weights", "recipe"):
        adjusted = table[f"p_{about}"].astype(float).where(tested)
        adjusted[adjusted.notna()] = holm(adjusted.dropna())
        cases = {ONE_SEED: adjusted.isna(), CANNOT_TELL: adjusted >= ALPHA, "better": gap > 0}
        words = pd.Series(np.select([*cases.values()], [*cases], "worse"), table.index)
        table = table.assign(**{f"holm_{about}": adjusted, about: words.where(tested)})
    return table


def _labels(clusters, queries: int) -> np.ndarray:
    """(N,) int in 0..C-1."""
    clusters = np.arange(queries) if clusters is None else np.asarray(clusters)
    if clusters.shape != (queries,):
        raise ValueError(f"expected clusters of {queries} queries, got shape {clusters.shape}")
    return np.unique(clusters, return_inverse=True)[1]


def _draws(clusters: int, width: int, resamples=RESAMPLES, seed=0) -> Iterator[np.ndarray]:
    """How often each cluster was drawn, (rows, C) at a time; the draws do not depend on `width`."""
    rng, rows = np.random.default_rng(seed), max(1, CHUNK // width)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)


def _weighted_metrics(ranks: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`retrieval_metrics` of sorted ranks (U,) that occur `weight` (U, R) times: (metrics, R)."""
    reached = weight.cumsum(0)
    total = reached[-1]
    place = np.searchsorted(ranks, RECALLS, side="right")
    recalls = 100 * np.where(place[:, None], reached[place - 1], 0) / total
    low, high = ((reached > middle).argmax(0) for middle in ((total - 1) // 2, total // 2))
    return np.vstack([recalls, (ranks[low] + ranks[high]) / 2, ranks @ weight / total])
