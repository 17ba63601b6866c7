"""Curves, bars, histograms, forest plots and point clouds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tvrkit.figures.style import INK, NEUTRAL, RIGHT, WIDTH, WRONG, Options, colours, styled

Lines = Mapping[str, Any]  # name -> array
VERDICTS = (
    ("the recipes differ", INK, INK),
    ("these weights do, of the recipes one can't tell", INK, "white"),
    ("one can't tell", NEUTRAL, "white"),
)
OWN: Options = {"marker": "o", "linestyle": "-", "color": RIGHT}
MINED: Options = {"marker": "X", "linestyle": ":", "color": WRONG}
QUERY: Options = {"marker": "*", "color": INK}

FEW = 12  # places on an axis that are all marked
CROWDED = 60  # letters of labels that still fit side by side


def _axes(width: float = 7.0, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _set_log(ax: Axes, name: str) -> None:
    """A logarithmic axis with plain numbers: dollars are text in this style, not formulas."""
    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_lines(ax: Axes, x: Sequence | np.ndarray, lines: Lines, markers: str) -> None:
    for (name, colour), marker in zip(colours(lines).items(), cycle(markers), strict=False):
        values, *ends = np.atleast_2d(np.asarray(lines[name], float).T)
        ax.plot(x, values, marker=marker, label=name, color=colour)
        if ends:
            ax.fill_between(x, *ends, color=colour, alpha=0.15, linewidth=0)


@styled
def panels(draws: Mapping[str, Callable[[Axes], None]], *, height: float = 3.6) -> Figure:
    """A panel per title, side by side; each function draws into its axes, and labels them."""
    figure, axes = _axes(WIDTH, height, columns=len(draws))
    for ax, (heading, draw) in zip(axes, draws.items(), strict=True):
        ax.set_title(heading)
        draw(ax)
    return figure


@styled
def curves(
    x: Sequence | np.ndarray,
    panels: Mapping[str, Lines],
    *,
    xlabel: str,
    chance: Sequence | None = None,
    log: bool = False,
) -> Figure:
    """A panel per quantity, named by its y axis, which has 0 on it.

    One legend below, where several panels have the same lines, else one in each.

    Args:
        x: (X,) values, all of them marked where there are few.
        panels: label -> name of a line -> (X,), or (X, 3) with the ends of its band; where NaN is,
            a line is broken.
        chance: (X,), a dashed line.
        log: the x axis is logarithmic.
    """
    figure, axes = _axes(WIDTH if len(panels) > 1 else 7.0, columns=len(panels))
    for ax, (ylabel, lines) in zip(axes, panels.items(), strict=True):
        _draw_lines(ax, x, lines, "os^Dv" if len(x) <= FEW else ",")
        if chance is not None:
            ax.plot(x, chance, "--", color=NEUTRAL, linewidth=1, label="chance")
        if log:
            _set_log(ax, "x")
        if len(x) <= FEW:
            ax.set_xticks(x, [f"{value:g}" for value in x])
            ax.minorticks_off()
        ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(min(0, ax.get_ylim()[0]), None))
    if len(axes) > 1 and len({tuple(lines) for lines in panels.values()}) == 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    else:
        for ax in axes:
            ax.legend()
    return figure


def interval_curves(
    table: pd.DataFrame, *, x: str, by: str, panels: Mapping[str, str], xlabel: str, **options
) -> Figure:
    """`curves` of a table: a line per value of the column `by` over the column `x`.

    Args:
        table: rows of quantity, `by`, `x`, value, low, high; where one is not there, a line is
            broken.
        panels: quantity -> label of its y axis; one without rows is left out.
    """
    places, names = sorted(table[x].unique()), table[by].unique()
    measured = [quantity for quantity in panels if quantity in set(table["quantity"])]
    grid = pd.MultiIndex.from_product([measured, names, places])
    rows = table.set_index(["quantity", by, x])[["value", "low", "high"]]
    rows = rows.reindex(grid).sort_index()
    drawn = {
        panels[quantity]: {name: rows.loc[quantity, name].to_numpy() for name in names}
        for quantity in measured
    }
    return curves(places, drawn, xlabel=xlabel, **options)


def deletion_plot(table: pd.DataFrame, what: str, **options) -> Figure:
    """Score and R@1 over the share of words, or frames, removed: `deletion_curves`' table."""
    panels = {"margin": "score (% of whole)", "hit": "R@1 (%)"}
    axes: Options = {"x": "removed", "by": "order", "xlabel": f"{what}s removed (%)"}
    return interval_curves(table, panels=panels, **axes, **options)


@styled
def bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence | np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    chance: float | Sequence[float] | None = None,
    base: float = 0.0,
) -> Figure:
    """Bars of G groups (factors, bins), with lines at chance: name -> (G,), or (G, 3) with the ends
    of their intervals.

    With a `base` above 0 the values are ratios on a logarithmic axis: bars stand on it, or hang
    from it. A bar of height 0 says "0", and one whose interval is not known (NaN) is hollow:
    neither is to look like a missing or a certain one.
    """
    figure, (ax,) = _axes(min(WIDTH, max(6.0, (0.9 + 0.3 * len(values)) * len(groups) + 1.5)))
    step, places = 0.8 / len(values), np.arange(len(groups))
    for index, (name, colour) in enumerate(colours(values).items()):
        heights, *ends = np.atleast_2d(np.asarray(values[name], float).T)
        x = places + (index - (len(values) - 1) / 2) * step
        look: Options = {"label": name, "color": colour, "edgecolor": colour}
        drawn = ax.bar(x, heights - base, step * 0.92, base, **look)
        zeros = ["" if height else "0" for height in heights]
        ax.bar_label(drawn, zeros, padding=2, color=colour, fontsize=8)
        if ends:
            for bar in np.array(drawn.patches)[np.isnan(ends[0])]:
                bar.set(facecolor="white", hatch="///")
            reach = np.maximum([heights - ends[0], ends[1] - heights], 0)
            ax.errorbar(x, heights, reach, fmt="none", color=INK, linewidth=1.2, capsize=3)
    if chance is not None:
        heights = np.broadcast_to(chance, len(groups))
        dashes: Options = {"linestyles": "--", "linewidth": 1, "label": "chance"}
        ax.hlines(heights, places - 0.5, places + 0.5, INK, **dashes)
    if base:
        _set_log(ax, "y")
        ax.axhline(base, color=INK, linewidth=1)
    ax.set_xticks(places, groups)
    for label in ax.get_xticklabels() if sum(map(len, groups)) > CROWDED else ():
        label.set(rotation=30, ha="right")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(visible=False, axis="x")
    beside: Options = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(**(beside if len(values) > 2 else {}))
    return figure


def factor_bars(tables: Mapping[str, pd.DataFrame], **options) -> Figure:
    """Accuracy by swapped factor: name -> table of `tvrkit.evaluation.factors.per_factor_accuracy`.

    Hollow bars rest on a single family of videos, whose interval nobody knows.
    """
    values = {name: table[["accuracy", "low", "high"]].to_numpy() for name, table in tables.items()}
    families = next(iter(tables.values())).set_index("factor")["families"]
    factors = [f"{name}\n1 family" if count == 1 else name for name, count in families.items()]
    axes = {"xlabel": "swapped factor", "ylabel": "own video above the swapped one (%)"}
    return bars(factors, values, **axes, chance=50, **options)


@styled
def histogram(values: Lines, bins: int | Sequence[float], *, xlabel: str, ylabel: str) -> Figure:
    """Shares (%) of each named set of values over common bins, as outlines that may overlap."""
    figure, (ax,) = _axes()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for name, colour in colours(values).items():
        share = 100 * np.histogram(values[name], edges)[0] / max(len(values[name]), 1)
        ax.stairs(share, edges, label=name, color=colour, linewidth=2)
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.15)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return figure


@styled
def forest_plot(tests: pd.DataFrame, *, xlabel: str) -> Figure:
    """Differences with intervals, and what can be told of them, in a panel per metric.

    Args:
        tests: rows of `tvrkit.evaluation.statistics.with_verdicts`, index name, with the column
            metric; each name has all metrics.
        xlabel: of what the differences are.
    """
    names, metrics = tests.index.unique(), tests["metric"].unique()
    figure, axes = _axes(WIDTH, 0.62 * len(names) + 1.5, columns=len(metrics))
    for ax, metric in zip(axes, metrics, strict=True):
        rows = tests[tests["metric"] == metric].loc[names]
        for place, row in enumerate(rows.itertuples()):
            sure = [verdict in ("better", "worse") for verdict in (row.recipe, row.weights)]
            colour = (RIGHT if row.difference > 0 else WRONG) if any(sure) else NEUTRAL
            look: Options = {"markerfacecolor": colour if sure[0] else "white"}
            ax.plot([row.low, row.high], [place, place], color=colour)
            ax.plot([row.difference], [place], "o", color=colour, markersize=8, **look)
            p_values = " / ".join(f"{p:.3f}" for p in (row.holm_weights, row.holm_recipe) if p == p)
            above: Options = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            ax.annotate(p_values, (row.difference, place), (0, 8), color=INK, **above)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set(xlabel=metric, ylim=(len(names) - 0.5, -0.7))
        ax.grid(visible=False, axis="y")
    for label, edge, face in VERDICTS:
        axes[0].plot([], [], "o", color=edge, markerfacecolor=face, markersize=8, label=label)
    where: Options = {"loc": "outside lower center", "ncols": 3}
    what = f"{xlabel}; numbers: p of these weights / of the recipe, adjusted"
    figure.legend(*axes[0].get_legend_handles_labels(), title=what, **where)
    return figure


@styled
def embedding(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], stories: Sequence[tuple]
) -> Figure:
    """Texts (N_t, 2) and videos (N_v, 2) in a panel per title, with some texts joined to videos.

    Args:
        panels: title -> texts and videos.
        stories: (text, its own video, mined videos) by number, the same in every panel; ★ the
            text, ● its own video, ✕ mined ones, joined to it.
    """
    figure, axes = _axes(WIDTH, 4.8, columns=len(panels))
    for ax, (heading, (texts, videos)) in zip(axes, panels.items(), strict=True):
        ax.plot(*texts.T, ".", color=NEUTRAL, markersize=4, alpha=0.6, label="texts")
        ax.plot(*videos.T, "s", color="#56B4E9", markersize=4, alpha=0.6, label="videos", zorder=1)
        for number, (text, own, mined) in enumerate(stories, 1):
            look: Options = {"markevery": [1], "markersize": 8, "linewidth": 1.2}
            for video, line in [(own, OWN), *((video, MINED) for video in mined)]:
                ax.plot(*np.transpose([texts[text], videos[video]]), **line, **look)
            ax.plot(*texts[text], **QUERY, markersize=13)
            beside: Options = {"textcoords": "offset points", "fontweight": "bold"}
            ax.annotate(str(number), texts[text], (6, 5), **beside)
        for name, line in (("own video", OWN), ("mined video", MINED), ("query", QUERY)):
            ax.plot([], [], **line | {"linestyle": "none"}, markersize=9, label=name)
        ax.set_title(heading)
        ax.set(xlabel="first main axis", ylabel="second main axis")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
