"""Evaluations side by side: the table of a paper, verdicts between methods, published numbers."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from tvrkit import files
from tvrkit.evaluation import ranks, statistics
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.evaluation.postprocess import POSTPROCESS
from tvrkit.evaluation.ranks import DIRECTIONS

PUBLISHED = "published_results.csv"
METRICS = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
TESTED = ("t2v R@1", "v2t R@1", "rsum")  # a part may help one way and hurt the other
PUBLISHED_METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")


def table(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """The table of a paper, with 95 % intervals: one row per method and direction.

    Post-processed scores are columns of their own ("dsl R@1"). `rsum` is the sum of R@1, R@5 and
    R@10 of both directions.

    Args:
        evaluations: name of the method -> its evaluation; all of the same queries and candidates.

    Raises:
        ValueError: the evaluations are not of the same captions and videos, or not by the same tie
            rule.
    """
    _check_same_queries(evaluations)
    rows = []
    for name, evaluation in evaluations.items():
        metrics = evaluation.metrics
        labels = {key: metrics[key] for key in ("split", "selection", "ties", "complete")}
        for direction in DIRECTIONS:
            row = {"method": name, "direction": direction}
            row["queries"] = metrics[f"{direction} queries"]
            for prefix in ("", *(f"{process} " for process in _processes(metrics))):
                for metric in METRICS:
                    row[prefix + metric] = with_interval(metrics, f"{prefix}{direction} {metric}")
                row[f"{prefix}rsum"] = with_interval(metrics, f"{prefix}rsum")
            rows.append(row | labels)
    return pd.DataFrame(rows)


def with_interval(metrics: Mapping, name: str) -> str:
    """A number of metrics.json as tables show it: "34.2 [30.9, 37.8]"."""
    return f"{metrics[name]:.1f} [{metrics[f'{name} low']:.1f}, {metrics[f'{name} high']:.1f}]"


def _processes(metrics: Mapping) -> list[str]:
    return [process for process in POSTPROCESS if f"{process} rsum" in metrics]


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
    counts = {way: len(found) for way, found in seed.ranks.items()}
    terms = ranks.RSUM if metric == "rsum" else (metric,)
    weight = dict(zip(DIRECTIONS, reversed([*counts.values()]), strict=True))
    total = np.zeros(1, np.int64)
    for term in terms:
        way, k = term.split(" R@")
        found = np.bincount(seed.clusters[way], seed.ranks[way] <= int(k)).astype(np.int64)
        total = total + found * (weight[way] if metric == "rsum" else 1)
    point = 100 / counts[way] / (weight[way] if metric == "rsum" else 1)
    return total, np.bincount(seed.clusters[way]), point


def paired_test(
    ours: Sequence, theirs: Sequence, metric: str = "t2v R@1", *, alpha=statistics.ALPHA
) -> dict:
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
    return statistics.paired_test(*sides, sizes, point=point / len(groups[0]), alpha=alpha)


def pairwise(
    evaluations: Mapping[str, Sequence],
    *,
    metrics: Sequence[str] = TESTED,
    alpha: float = statistics.ALPHA,
) -> pd.DataFrame:
    """Every method against every other: is a better than b, or can't one tell?

    All rows are adjusted together. `weights` is the verdict about the weights that are there,
    `recipe` the one about those, and those test videos, that might have been.

    Args:
        evaluations: name of the method -> the evaluations, or runs, of its seeds.
        metrics: as `credits` has them.
        alpha: level of the verdicts and of the interval.

    Returns:
        DataFrame: a, b, metric, and the columns of `statistics.with_verdicts`.

    Raises:
        ValueError: as `table`; or fewer than two methods.
    """
    if len(evaluations) < 2:
        raise ValueError(f"expected two evaluations or more, got {len(evaluations)}")
    _check_same_queries(
        {(name, k): seed for name, seeds in evaluations.items() for k, seed in enumerate(seeds)}
    )
    rows = [
        {"a": a, "b": b, "metric": metric}
        | paired_test(evaluations[a], evaluations[b], metric, alpha=alpha)
        for metric in metrics
        for a, b in combinations(evaluations, 2)
    ]
    return statistics.with_verdicts(pd.DataFrame(rows), alpha)


def over_seeds(evaluations: Mapping[str, Sequence[Evaluation]]) -> pd.DataFrame:
    """Mean ± sample standard deviation over the seeds of each recipe, and R@1 of each seed.

    Returns:
        DataFrame of texts, index recipe and direction: R@1, R@5, R@10, MnR, "R@1 of each seed".
    """
    rows = {}
    for name, seeds in evaluations.items():
        for direction in DIRECTIONS:
            row = {}
            for metric in ("R@1", "R@5", "R@10", "MnR"):
                values = [seed.metrics[f"{direction} {metric}"] for seed in seeds]
                mean, deviation = np.mean(values), pd.Series(values).std()
                row[metric] = f"{mean:.1f} ± {deviation:.1f}" if len(seeds) > 1 else f"{mean:.1f}"
            each = [f"{seed.metrics[f'{direction} R@1']:.1f}" for seed in seeds]
            rows[name, direction] = row | {"R@1 of each seed": "  ".join(each)}
    return pd.DataFrame(rows).T.rename_axis(["recipe", "direction"])


def agreement(evaluations: Mapping[str, Evaluation], *, k: int = 1) -> pd.DataFrame:
    """(M, M) percent of the captions that both of two evaluations find within K, or both miss.

    Raises:
        ValueError: as `table`.
    """
    _check_same_queries(evaluations)
    hits = np.array([evaluation.ranks["t2v"] <= k for evaluation in evaluations.values()])
    same = (hits[:, None] == hits).mean(axis=2)
    return pd.DataFrame(100 * same, index=list(evaluations), columns=list(evaluations))


def _check_same_queries(evaluations: Mapping) -> None:
    if not evaluations:
        raise ValueError("expected one evaluation or more, got none")
    (name, first), *others = evaluations.items()
    for other, evaluation in others:
        for key in ("caption_ids", "video_ids", "video_of_caption"):
            a, b = getattr(first, key), getattr(evaluation, key)
            if not np.array_equal(a, b):
                sizes = f"{len(a)} and {len(b)} {key}"
                raise ValueError(f"{name} and {other} are not of the same queries: {sizes}")
        rules = first.metrics["ties"], evaluation.metrics["ties"]
        if rules[0] != rules[1]:
            raise ValueError(
                f"{name} and {other} count ties differently: {rules[0]} and {rules[1]}"
            )


def published_results() -> pd.DataFrame:
    """data/published_results.csv: a row per published number, with `source`, and `trust` ("seen",
    "second-hand").

    Cells nobody could read are empty (NaN).

    Raises:
        FileNotFoundError: neither the home folder nor the checkout has it.
    """
    folders = (files.home(), files.PACKAGE.parent)
    path = next(
        (f / "data" / PUBLISHED for f in folders if (f / "data" / PUBLISHED).exists()), None
    )
    if path is None:
        raise FileNotFoundError(
            f"no {PUBLISHED} in data/: it comes with the checkout of the project"
        )
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    return rows.assign(**{name: pd.to_numeric(rows[name]) for name in PUBLISHED_METRICS})


def beside_published(
    ours: Mapping[str, tuple[str, Evaluation]], card: Mapping, language: str
) -> pd.DataFrame:
    """Published rows of a data set's protocol and language, and ours, raw and post-processed, by
    direction.

    A row whose source does not name its protocol never appears, and where nothing is published for
    this protocol the table is empty: ours alone has nothing to stand beside.

    Args:
        ours: name of the method -> (backbone, evaluation); all on the data set of `card`.
        card: card.json of the prepared data set.
        language: of its captions.

    Returns:
        DataFrame: direction, postprocess, method, backbone, pretraining, `PUBLISHED_METRICS`,
        source, trust. Ours have the trust "ours", or "ours, not comparable" where the set is not
        the protocol's whole one.
    """
    known = published_results().query(
        "protocol != '' and protocol == @card['protocol'] and language == @language"
    )
    # shapes and whole sets have neither
    whole = not (card.get("partial") or card.get("mismatches"))
    rows = []
    for name, (backbone, evaluation) in ours.items():
        metrics = evaluation.metrics
        labels = {"method": name, "backbone": backbone, "pretraining": "see recipe"}
        comparable = whole and metrics["complete"]
        labels |= {"source": "this run", "trust": "ours" if comparable else "ours, not comparable"}
        for process in ("raw", *_processes(metrics)):
            prefix = "" if process == "raw" else f"{process} "
            for direction in DIRECTIONS:
                numbers = {m: metrics[f"{prefix}{direction} {m}"] for m in PUBLISHED_METRICS}
                rows.append({"direction": direction, "postprocess": process, **labels, **numbers})
    columns = ["direction", "postprocess", "method", "backbone", "pretraining"]
    columns += [*PUBLISHED_METRICS, "source", "trust"]
    if known.empty:
        return pd.DataFrame(columns=columns)
    both = pd.concat([known[columns], pd.DataFrame(rows, columns=columns)], ignore_index=True)
    return both.sort_values(
        ["direction", "postprocess", "R@1"], ascending=[True, False, False], ignore_index=True
    )
