"""Numbers that judge a picture, each with its interval, and the collection of them for a run."""

from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from tvrkit import files
from tvrkit.evaluation.statistics import ratio_interval
from tvrkit.training import card as cards

Interval = tuple[float, float, float]  # value, low, high


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
    test = scipy.stats.mannwhitneyu(scores[truth], scores[~truth], method="asymptotic")
    return float(test.statistic / (truth.sum() * (~truth).sum()))


def mean_interval(values, clusters=None) -> Interval:
    """Mean of the values that are not NaN and its 95 % interval, see `statistics.ratio_interval`.

    Args:
        values: (N,) float.
        clusters: (N,) labels; values of one label (captions of one video) are drawn together.

    Returns:
        All NaN where there are fewer than two such values, or clusters.
    """
    values = pd.Series(np.asarray(values, float)).dropna()
    labels = values.index if clusters is None else np.asarray(clusters)[values.index]
    if len(np.unique(labels)) < 2:
        return np.nan, np.nan, np.nan
    return ratio_interval(values, np.ones(len(values)), labels)


def format_interval(interval, form: str = "{:.3g}") -> str:
    """A value and, where it is known, its interval as "1.2 [0.9, 1.5]"; "unknown" for NaN."""
    known = form if np.isnan(interval[1]) else f"{form} [{form}, {form}]"
    return "unknown" if np.isnan(interval[0]) else known.format(*interval)


class Diagnostics(dict[str, Interval]):
    """Title -> value, low, high, in the order in which they were added."""

    def add(self, title: str, values, clusters=None) -> None:
        """Note the mean of values and its interval, see `mean_interval`."""
        self[title] = mean_interval(values, clusters)

    def table(self, contains: str = "") -> pd.DataFrame:
        """Rows by title, those whose title contains a text; columns mean, low, high."""
        rows = {title: interval for title, interval in self.items() if contains in title}
        return pd.DataFrame.from_dict(rows, orient="index", columns=cards.BOUNDS)

    def save(self, path: Path) -> None:
        """Write them into a finished run's folder, for its page; what is unknown is null."""
        table = self.table().astype(object)
        numbers = table.where(table.notna(), None).to_dict("index")
        files.write_json(path, cards.diagnostics(path.parent, numbers))
