"""How often is a recipe called better that is not? `python -m tests.false_positives` prints it.

Two recipes of equal skill are trained with some seeds each and tested on some videos, over again.
What they find is drawn from a latent score of each of the run's queries,

    found = video + recipe x video + seed + rest > threshold,

whose parts have the spread that the committed reference run shows: how often the runs of two
recipes, and two seeds of one, agree on a query, and how much R@1 moves between seeds beyond that.
Queries are grouped in the run's families of videos, as the tests group them. Counted are false
verdicts of `statistics.sign_flip_test` on the pooled seeds (about the weights), of Welch's t test
on one number a seed, and of `statistics.paired_test` (seeds and videos): alone, and as the first of
the comparisons that notebook 03 adjusts together (four methods, three metrics).
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from tvrkit.evaluation import compare, statistics
from tvrkit.training.runs import Run

ROOT = Path(__file__).parents[1] / "reports" / "reference"
SEEDS = (2, 3, 4, 5, 6, 8)
WORLDS = 600
TOGETHER = 18  # comparisons of four methods on three metrics


def groups(root: Path = ROOT) -> list[list[Run]]:
    """Runs of one recipe that differ in their seed alone."""
    folders = sorted({card.parents[1] for card in root.rglob("seed*/run.json")})
    runs = ([Run(path.parent) for path in folder.glob("seed*/run.json")] for folder in folders)
    return [group for group in runs if len(group) > 1]


def seed_variance(runs: list[list[Run]], metric: str) -> float:
    """Variance of a metric over seeds, in points^2, beyond what the videos' own noise makes."""
    excess = []
    for group in runs:
        for one, two in combinations(group, 2):
            (a, sizes, point), (b, *_) = compare.credits(one, metric), compare.credits(two, metric)
            gain = point * (a - b)
            rest = gain - sizes * gain.sum() / sizes.sum()
            noise = len(rest) / (len(rest) - 1) * rest @ rest
            excess.append((gain.sum() ** 2 - noise) / 2)
    return max(float(np.mean(excess)), 0.0)


def latent_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Of normal scores behind two rows of hits that are right together this often."""
    rate, both = (one.mean() + two.mean()) / 2, (one & two).mean()
    cut = stats.norm.ppf(rate)
    grid = np.linspace(0, 0.999, 200)
    joint = [stats.multivariate_normal.cdf([cut, cut], cov=[[1, r], [r, 1]]) for r in grid]
    return float(np.interp(both, joint, grid))


def estimated(runs: list[list[Run]], main: list[list[Run]]) -> dict[str, float]:
    """Spread of each part of the latent score, and R@1, from the reference run."""
    hits = [[run.ranks["t2v"] == 1 for run in group] for group in main]
    same = [latent_correlation(*pair) for group in hits for pair in combinations(group, 2)]
    other = [latent_correlation(a[0], b[0]) for a, b in combinations(hits, 2)]
    rate = float(np.mean(hits))
    slope = 100 * stats.norm.pdf(stats.norm.ppf(rate))  # points of R@1 per unit of the score
    shared, own = float(np.mean(other)), float(np.mean(same))
    parts = {"video": shared, "recipe x video": max(own - shared, 0), "rest": 1 - max(own, shared)}
    spread = {name: value**0.5 for name, value in parts.items()}
    return spread | {"seed": seed_variance(runs, "t2v R@1") ** 0.5 / slope, "R@1": 100 * rate}


def world(spread: dict[str, float], cluster: np.ndarray, seeds: int, shift: float, rng) -> list:
    """Hits of two recipes by cluster, (seeds, C) int each; the first is better by `shift` of the
    score. `cluster` (Q,) int: of each query."""

    def draw(name, *shape):
        return spread[name] * rng.normal(size=shape)

    cut, video, found = stats.norm.ppf(spread["R@1"] / 100), draw("video", len(cluster)), []
    for better in (shift, 0.0):
        score = video + draw("recipe x video", len(cluster)) + draw("seed", seeds, 1)
        score = score + draw("rest", seeds, len(cluster)) + better
        found.append(np.array([np.bincount(cluster, hits) for hits in score > -cut]))
    return found


def told(spread, cluster, seeds: int, shift: float = 0.0, worlds: int = WORLDS) -> dict:
    """Share (%) of worlds in which each test tells two recipes apart at 5 %."""
    rng, sizes = np.random.default_rng(seeds), np.bincount(cluster)
    p_values = []
    for _ in range(worlds):
        a, b = (hits.astype(np.int64) for hits in world(spread, cluster, seeds, shift, rng))
        test = statistics.paired_test(a, b, sizes)
        welch = stats.ttest_ind(a.sum(1), b.sum(1), equal_var=False).pvalue
        p_values.append((test["p_weights"], welch, test["p_recipe"]))
        p_values[-1] += (TOGETHER * test["p_recipe"],)
    names = ("weights (sign flip)", "seeds (Welch)", "recipe (seeds and videos)")
    names += (f"recipe, one of {TOGETHER}",)
    return dict(zip(names, 100 * (np.array(p_values) < statistics.ALPHA).mean(0), strict=True))


def table(worlds: int = WORLDS) -> tuple[dict[str, float], pd.DataFrame]:
    """The spreads, and by number of seeds the share of false verdicts and, of three points more,
    of right ones."""
    runs = groups()
    main = [group for group in runs if group[0].folder.parents[1] == ROOT]
    spread = estimated(runs, main)
    slope = stats.norm.pdf(stats.norm.ppf(spread["R@1"] / 100))
    cluster, rows = main[0][0].clusters["t2v"], {}
    for seeds, (kind, points) in product(SEEDS, (("false", 0.0), ("3 points found", 3.0))):
        share = told(spread, cluster, seeds, points / 100 / slope, worlds)
        rows.setdefault(seeds, {}).update({f"{kind}: {name}": x for name, x in share.items()})
    return spread, pd.DataFrame(rows).T.rename_axis("seeds")


if __name__ == "__main__":
    spread, found = table()
    print("; ".join(f"{name} {value:.2f}" for name, value in spread.items()))
    print(found.round(1).to_string())
