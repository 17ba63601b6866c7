"""Curves, bars, histograms, forest plots and point clouds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from tvrkit.figures.style import INK, NEUTRAL, RIGHT, WIDTH, WRONG, Options, colours, styled

Lines = Mapping[str, np.ndarray]
RANK_BINS = {"1": (1, 1), "2-5": (2, 5), "6-10": (6, 10), "11-50": (11, 50), "> 50": (51, np.inf)}
POINTS: Options = {"fmt": "o", "color": RIGHT, "markersize": 7, "markerfacecolor": "white"}
TOLD = ("recipe", "weights")  # what a verdict is about
TOLD_LEGEND = (
    ("the recipes differ", INK, INK),
    ("these weights do, of the recipes one can't tell", INK, "white"),
    ("one can't tell", NEUTRAL, "white"),
)
DASHED: Options = {"linestyle": "--", "color": NEUTRAL, "linewidth": 1}


def _axes(width: float = 7.0, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _set_log(ax: Axes, name: str) -> None:
    """A logarithmic axis with plain numbers: dollars are text in this style, not formulas."""
    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_lines(
    ax: Axes, x: Sequence | np.ndarray, lines: Lines, bands: Lines | None, markers: str
) -> None:
    for (name, colour), marker in zip(colours(lines).items(), cycle(markers), strict=False):
        ax.plot(x, lines[name], marker=marker, label=name, color=colour)
        if bands:
            ax.fill_between(x, *bands[name], color=colour, alpha=0.15, linewidth=0)


@styled
def loss_curve(steps: np.ndarray, losses: Lines, rates: Lines) -> Figure:
    """Losses and, on a logarithmic axis of their own, learning rates: name -> (S,) over steps."""
    figure, axes = _axes(WIDTH, columns=2)
    for ax, lines, label in zip(axes, (losses, rates), ("loss", "learning rate"), strict=True):
        _draw_lines(ax, steps, lines, None, ",")
        ax.set(xlabel="step", ylabel=label)
        ax.legend()
    _set_log(axes[1], "y")
    return figure


@styled
def recall_curve(
    x: Sequence,
    recalls: Lines,
    *,
    xlabel: str,
    ylabel: str,
    bands: Lines | None = None,
    chance: Sequence | None = None,
) -> Figure:
    """Recall (%) over epochs or K: name -> (X,), with bands (2, X) and chance (X,), dashed."""
    figure, (ax,) = _axes()
    _draw_lines(ax, x, recalls, bands, "o")
    if chance is not None:
        ax.plot(x, chance, label="chance", **DASHED)
    if xlabel == "K":
        _set_log(ax, "x")
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    ax.legend()
    return figure


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
    x: Sequence, panels: Mapping[str, tuple[Lines, Lines]], *, xlabel: str | Sequence[str]
) -> Figure:
    """A panel per quantity, named by its y axis: (name -> (X,), name -> its band (2, X)).

    One label of the x axes, or one for each. One legend below, where all panels have the same
    lines, else one in each.
    """
    figure, axes = _axes(WIDTH, columns=len(panels))
    labels = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
    for ax, label, (ylabel, (lines, bands)) in zip(axes, labels, panels.items(), strict=True):
        _draw_lines(ax, x, lines, bands, "os^Dv")
        ax.set(xlabel=label, ylabel=ylabel, xlim=axes[0].get_xlim())
        if np.issubdtype(np.asarray(x).dtype, np.integer):
            ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    if len({tuple(lines) for lines, _ in panels.values()}) == 1:
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
        panels: quantity -> label of its y axis.
    """
    places = sorted(table[x].unique())
    drawn: dict[str, tuple[Lines, Lines]] = {}
    for quantity, label in panels.items():
        groups = table[table["quantity"] == quantity].set_index(x).groupby(by, sort=False)
        rows = {str(name): group.reindex(places) for name, group in groups}
        lines = {name: group["value"].to_numpy() for name, group in rows.items()}
        bands = {name: group[["low", "high"]].to_numpy().T for name, group in rows.items()}
        drawn[label] = lines, bands
    return curves(places, drawn, xlabel=xlabel, **options)


def deletion_plot(table: pd.DataFrame, what: str, **options) -> Figure:
    """Score and R@1 over the share of words, or frames, removed: `deletion_curves`' table."""
    panels = {"margin": "score (% of whole)", "hit": "R@1 (%)"}
    axes: Options = {"x": "removed", "by": "order", "xlabel": f"{what}s removed (%)"}
    return interval_curves(table, panels=panels, **axes, **options)


@styled
def bars(
    groups: Sequence[str],
    values: Lines,
    *,
    xlabel: str,
    ylabel: str,
    intervals: Lines | None = None,
    chance: float | Sequence[float] | None = None,
    base: float = 0.0,
) -> Figure:
    """Bars of G groups (factors, bins): name -> (G,), with intervals (G, 2) and lines at chance.

    With a `base` above 0 the values are ratios on a logarithmic axis: bars stand on it, or hang
    from it. A bar of height 0 says "0", and one whose interval is not known (NaN) is hollow:
    neither is to look like a missing or a certain one.
    """
    figure, (ax,) = _axes(min(WIDTH, max(6.0, (0.9 + 0.3 * len(values)) * len(groups) + 1.5)))
    step, places = 0.8 / len(values), np.arange(len(groups))
    for index, (name, colour) in enumerate(colours(values).items()):
        heights = np.asarray(values[name], float)
        x = places + (index - (len(values) - 1) / 2) * step
        look: Options = {"label": name, "color": colour, "edgecolor": colour}
        drawn = ax.bar(x, heights - base, step * 0.92, base, **look)
        for place in x[heights == 0]:
            look = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": colour}
            ax.annotate("0", (place, 0), (0, 2), **look)
        if intervals:
            low, high = np.asarray(intervals[name], float).T
            for bar in np.array(drawn.patches)[np.isnan(low)]:
                bar.set(facecolor="white", hatch="///")
            reach = np.maximum([heights - low, high - heights], 0)
            ax.errorbar(x, heights, reach, fmt="none", color=INK, linewidth=1.2, capsize=3)
    if chance is not None:
        heights = np.broadcast_to(chance, len(groups))
        dashes: Options = {"linestyles": "--", "linewidth": 1, "label": "chance"}
        ax.hlines(heights, places - 0.5, places + 0.5, INK, **dashes)
    if base:
        _set_log(ax, "y")
        ax.axhline(base, color=INK, linewidth=1)
    ax.set_xticks(places, groups)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(visible=False, axis="x")
    beside: Options = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(**(beside if len(values) > 2 else {}))
    return figure


def interval_bars(groups: Sequence[str], values: Mapping[str, Sequence], **options) -> Figure:
    """`bars` of (value, low, high) for each name and group: name -> (G, 3)."""
    rows = {name: np.asarray(row, float) for name, row in values.items()}
    intervals = {name: row[:, 1:] for name, row in rows.items()}
    heights = {name: row[:, 0] for name, row in rows.items()}
    return bars(groups, heights, intervals=intervals, **options)


def factor_bars(tables: Mapping[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Accuracy by swapped factor: name -> table of `tvrkit.inspection.per_factor_accuracy`.

    Hollow bars rest on a single family of videos, whose interval nobody knows.
    """
    tables = {name: table.set_index("factor") for name, table in tables.items()}
    families = next(iter(tables.values()))["families"]
    return bars(
        [f"{factor}\n1 family" if count == 1 else factor for factor, count in families.items()],
        {name: table["accuracy"].to_numpy() for name, table in tables.items()},
        xlabel="swapped factor",
        ylabel="own video above the swapped one (%)",
        intervals={name: table[["low", "high"]].to_numpy() for name, table in tables.items()},
        chance=50,
        title=title,
    )


def rank_histogram(ranks: Lines) -> Figure:
    """Share of queries (%) whose right answer has rank 1, 2-5, 6-10, 11-50 or more: name -> (N,)
    from 1."""
    bounds = np.array(list(RANK_BINS.values())).T[..., None]
    inside = {name: (row >= bounds[0]) & (row <= bounds[1]) for name, row in ranks.items()}
    shares = {name: 100 * row.mean(axis=1) for name, row in inside.items()}
    return bars(list(RANK_BINS), shares, xlabel="rank of the right answer", ylabel="queries (%)")


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
            told = {about: getattr(row, about) in ("better", "worse") for about in TOLD}
            colour = (RIGHT if row.difference > 0 else WRONG) if any(told.values()) else NEUTRAL
            look: Options = {"markerfacecolor": colour if told["recipe"] else "white"}
            ax.plot([row.low, row.high], [place, place], color=colour)
            ax.plot([row.difference], [place], "o", color=colour, markersize=8, **look)
            p_values = " / ".join(f"{p:.3f}" for p in (row.holm_weights, row.holm_recipe) if p == p)
            above: Options = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            ax.annotate(p_values, (row.difference, place), (0, 8), color=INK, **above)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set(xlabel=metric, ylim=(len(names) - 0.5, -0.7))
        ax.grid(visible=False, axis="y")
    for label, edge, face in TOLD_LEGEND:
        axes[0].plot([], [], "o", color=edge, markerfacecolor=face, markersize=8, label=label)
    where: Options = {"loc": "outside lower center", "ncols": 3}
    what = f"{xlabel}; numbers: p of these weights / of the recipe, adjusted"
    figure.legend(*axes[0].get_legend_handles_labels(), title=what, **where)
    return figure


@styled
def ablation(
    names: Sequence[str],
    panels: Mapping[str, np.ndarray],
    *,
    reference: str,
    x: Sequence | None = None,
    xlabel: str = "",
    log: bool = False,
) -> Figure:
    """Values and intervals of variants, a panel per quantity: by name, or as a line over `x`.

    The reference is filled, its value a dashed line. A logarithmic axis is linear below the
    smallest value above 0.

    Args:
        names: of N variants.
        panels: label -> (N, 3) float: value, low, high.
    """
    figure, axes = _axes(WIDTH, max(3.2, 0.36 * len(names) + 1.2), columns=len(panels))
    row = list(names).index(reference) if reference in names else None
    filled: Options = {"color": RIGHT, "markersize": 7, "zorder": 3}
    for ax, (label, values) in zip(axes, panels.items(), strict=True):
        value, reach = values[:, 0], np.abs(values[:, 1:].T - values[:, 0])
        look: Options = {**POINTS, "capsize": 3, "linewidth": 1.5}
        if x is None:
            ax.errorbar(value, range(len(names)), xerr=reach, **look)
            ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
            ax.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
        else:
            places = np.asarray(x, float)
            ax.errorbar(places, value, yerr=reach, **look | {"fmt": "o-"})
            if log:
                ax.set_xscale("symlog", linthresh=places[places > 0].min())
            ax.set_xticks(places, [f"{place:g}" for place in x])
            ax.minorticks_off()
            ax.set(xlabel=xlabel, ylabel=label)
        if row is not None:
            line, at = (
                (ax.axvline, (value[row], row))
                if x is None
                else (ax.axhline, (places[row], value[row]))
            )
            line(value[row], zorder=0, **DASHED)
            ax.plot(*at, "o", **filled)
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
            for columns, marker, colour, line in (
                ([own], "o", RIGHT, "-"),
                (mined, "X", WRONG, ":"),
            ):
                for column in columns:
                    ends = np.stack([texts[text], videos[column]])
                    ax.plot(*ends.T, line, color=colour, linewidth=1.2)
                ax.plot(*videos[list(columns)].T, marker, color=colour, markersize=8)
            ax.plot(*texts[text], "*", color=INK, markersize=13)
            beside: Options = {
                "textcoords": "offset points",
                "xytext": (6, 5),
                "fontweight": "bold",
            }
            ax.annotate(str(number), texts[text], **beside)
        for name, marker, colour in (
            ("own video", "o", RIGHT),
            ("mined video", "X", WRONG),
            ("query", "*", INK),
        ):
            ax.plot([], [], marker, color=colour, markersize=9, label=name)
        ax.set_title(heading)
        ax.set(xlabel="first main axis", ylabel="second main axis")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
