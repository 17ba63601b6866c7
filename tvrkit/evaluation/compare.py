"""Evaluations side by side: verdicts between methods, and published numbers."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from tvrkit import files
from tvrkit.evaluation import ranks, statistics
from tvrkit.evaluation.ranks import DIRECTIONS

PUBLISHED = "published_results.csv"
METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")  # that papers print
TESTED = ("t2v R@1", "v2t R@1", "rsum")  # a part may help one way and hurt the other


def with_interval(metrics: Mapping, name: str) -> str:
    """A number of metrics.json as tables show it: "34.2 [30.9, 37.8]"."""
    return f"{metrics[name]:.1f} [{metrics[f'{name} low']:.1f}, {metrics[f'{name} high']:.1f}]"


def pooled(seeds: Sequence, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of several seeds one after the other, and of which cluster each query is: the same
    number in every seed.

    What resamples or swaps clusters then takes all captions of all videos of a family, with all
    seeds, together. `seeds` are evaluations, or runs of which the ranks were kept and the
    similarity matrix was not.
    """
    clusters = [seed.clusters[direction] for seed in seeds]
    return np.concatenate([seed.ranks[direction] for seed in seeds]), np.concatenate(clusters)


def credits(seed, metric: str = "t2v R@1") -> tuple[np.ndarray, np.ndarray, float]:
    """What each cluster of queries adds to a metric.

    Args:
        seed: an evaluation or a run.
        metric: "t2v R@K", "v2t R@K", or "rsum", in which a caption counts as often as the other
            direction has queries, so that credits stay whole numbers.

    Returns:
        credits (C,) int64, sizes (C,) int64 (queries of each cluster; videos for rsum), and the
        percentage points that a credit is worth: metric = point x credits.sum().
    """
    counts = {way: len(ranked) for way, ranked in seed.ranks.items()}
    terms = ranks.RSUM if metric == "rsum" else (metric,)
    weight = dict(zip(DIRECTIONS, reversed([*counts.values()]), strict=True))
    total = np.zeros(1, np.int64)
    for term in terms:
        way, k = term.split(" R@")
        hits = np.bincount(seed.clusters[way], seed.ranks[way] <= int(k)).astype(np.int64)
        total = total + hits * (weight[way] if metric == "rsum" else 1)
    point = 100 / counts[way] / (weight[way] if metric == "rsum" else 1)
    return total, np.bincount(seed.clusters[way]), point


def paired_test(ours: Sequence, theirs: Sequence, metric: str = "t2v R@1") -> dict:
    """`statistics.paired_test` of two methods, on a metric as `credits` has it.

    Args:
        ours: a seed each: an evaluation or a run, or a list of them that count as one.
        theirs: the same, on the same queries.
    """
    groups = [seed if isinstance(seed, list) else [seed] for seed in (*ours, *theirs)]
    earned = [[credits(each, metric) for each in group] for group in groups]
    sums = [sum(credit for credit, *_ in group) for group in earned]
    _, sizes, point = earned[0][0]
    sides = sums[: len(ours)], sums[len(ours) :]
    return statistics.paired_test(*sides, sizes, point=point / len(groups[0]))


def pairwise(evaluations: Mapping[str, Sequence]) -> pd.DataFrame:
    """Every method against every other on each of `TESTED`: is a better than b, or can't one tell?

    All rows are adjusted together. `weights` is the verdict about the weights that are there,
    `recipe` the one about those, and those test videos, that might have been.

    Args:
        evaluations: name of the method -> the evaluations, or runs, of its seeds.

    Returns:
        DataFrame: a, b, metric, and the columns of `statistics.with_verdicts`.

    Raises:
        ValueError: the evaluations are not of the same captions and videos, or not by the same tie
            rule; or fewer than two methods.
    """
    files.expect(len(evaluations) > 1, "compare", "two evaluations or more", len(evaluations))
    _check_same_queries(
        {f"{name} {k}": seed for name, seeds in evaluations.items() for k, seed in enumerate(seeds)}
    )
    rows = [
        {"a": a, "b": b, "metric": metric} | paired_test(evaluations[a], evaluations[b], metric)
        for metric in TESTED
        for a, b in combinations(evaluations, 2)
    ]
    return statistics.with_verdicts(pd.DataFrame(rows))


def _check_same_queries(evaluations: Mapping) -> None:
    (name, first), *others = evaluations.items()
    for other, evaluation in others:
        for key in ("caption_ids", "video_ids", "video_of_caption"):
            a, b = first.ids[key], evaluation.ids[key]
            if not np.array_equal(a, b):
                sizes = f"{len(a)} and {len(b)} {key}"
                raise ValueError(f"{name} and {other} are not of the same queries: {sizes}")
        rules = first.metrics["ties"], evaluation.metrics["ties"]
        if rules[0] != rules[1]:
            both = f"{rules[0]} and {rules[1]}"
            raise ValueError(f"{name} and {other} count ties differently: {both}")


def published_results() -> pd.DataFrame:
    """data/published_results.csv: a row per published number, with `source`, and `trust` ("seen",
    "second-hand").

    Cells nobody could read are empty (NaN).

    Raises:
        FileNotFoundError: neither the home folder nor the checkout has it.
    """
    places = [folder / "data" / PUBLISHED for folder in (files.home(), files.PACKAGE.parent)]
    path = next(filter(Path.exists, places), None)
    if path is None:
        raise FileNotFoundError(f"no {PUBLISHED} in data/: it comes with the project's checkout")
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    return rows.assign(**{name: pd.to_numeric(rows[name]) for name in METRICS})
