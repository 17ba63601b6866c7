"""Numbers that judge a picture, each with its interval, and the collection of them for a run."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from tvrkit import files

Interval = tuple[float, float, float]  # value, low, high
BOUNDS = ["mean", "low", "high"]


def auc(scores, truth) -> float:
    """Probability that a true item scores above a false one, ties counting half (Mann-Whitney); 0.5
    = chance.

    Args:
        scores: (N,) float.
        truth: (N,) bool.

    Returns:
        NaN where `truth` has one class only.
    """
    scores, truth = np.asarray(scores, float), np.asarray(truth, bool)
    if truth.all() or not truth.any():
        return float("nan")
    test = stats.mannwhitneyu(scores[truth], scores[~truth], method="asymptotic")
    return float(test.statistic / (truth.sum() * (~truth).sum()))


def mean_interval(values, clusters=None, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of the values that are not NaN and its 95 % percentile bootstrap interval (low, high).

    Args:
        values: (N,) float.
        clusters: (N,) labels; values of one label (captions of one video) are averaged first and
            drawn together.
        resamples: bootstrap samples.
        seed: of the draws.

    Returns:
        All NaN where there are fewer than two such values, or clusters.
    """
    values = np.asarray(values, float)
    if clusters is not None:
        values = pd.Series(values).groupby(np.asarray(clusters)).mean().to_numpy()
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) > 1 else float("nan")
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, mean, mean
    options = {"n_resamples": resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    bounds = stats.bootstrap((values,), np.mean, **options).confidence_interval
    return mean, float(bounds.low), float(bounds.high)


def format_interval(interval, form: str = "{:.3g}") -> str:
    """A value and its interval as "1.2 [0.9, 1.5]"; "unknown" where the value is NaN."""
    return "unknown" if np.isnan(interval[0]) else f"{form} [{form}, {form}]".format(*interval)


class Diagnostics(dict[str, Interval]):
    """Title -> value, low, high, in the order in which they were added."""

    def add(self, title: str, values, clusters=None) -> None:
        """Note the mean of values and its interval, see `mean_interval`."""
        self[title] = mean_interval(values, clusters)

    def table(self, contains: str = "") -> pd.DataFrame:
        """Rows by title, those whose title contains a text; columns mean, low, high."""
        rows = {title: interval for title, interval in self.items() if contains in title}
        return pd.DataFrame.from_dict(rows, orient="index", columns=BOUNDS)

    def save(self, path: Path) -> None:
        """Write them as JSON for the run's page; what is unknown is null."""
        table = self.table().astype(object)
        files.write_json(path, table.where(table.notna(), None).to_dict("index"))
