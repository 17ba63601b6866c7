"""Figures of one style: arrays in, matplotlib `Figure` out.

Colours are Okabe and Ito's, which colour-blind readers tell apart; what a colour says, a mark, a
label or a position says too. Figures are built without pyplot, so none stays open in a long run.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, wraps
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
from matplotlib.patches import Rectangle

INK, NEUTRAL, RIGHT, WRONG = "#222222", "#9A9A9A", "#0072B2", "#D55E00"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666")
METHOD_COLOURS = {"clip4clip": "#666666", "dmae": "#0072B2", "hmmc": "#009E73", "glscl": "#D55E00"}
CJK_FAMILIES = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans SC",
        "Source Han Sans SC",
        "WenQuanYi Zen Hei",
        "WenQuanYi Micro Hei",
    ),
    *("Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC"),
)
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "figure.dpi": 100,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "pdf.fonttype": 42,
}
WIDTH = 10.0  # inches: the text width of a notebook page
# pixels; narrower frames are enlarged, and stay sharp (and files half as large) without smoothing
SMALL = 100
TITLE = 82  # characters of a bold title of 12 points on one line of that width
LINE = 105  # characters of 11 points on one line of that width
RANK_BINS = {"1": (1, 1), "2-5": (2, 5), "6-10": (6, 10), "11-50": (11, 50), "> 50": (51, np.inf)}
Lines = Mapping[str, np.ndarray]


@cache
def _families() -> list[str]:
    known = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *[name for name in CJK_FAMILIES if name in known][:1]]


@cache
def _glyphs() -> frozenset[int]:
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _families()]
    return frozenset(code for font in fonts for code in font.get_charmap())


@cache
def drawable(text: str) -> str:
    """`text` with □ for each character that no installed font has, and a warning."""
    missing = {char for char in text if ord(char) not in _glyphs() and not char.isspace()}
    if missing:
        warnings.warn(
            "no installed font has Chinese glyphs, □ stands for them: install fonts-noto-cjk, or another of "
            f"{', '.join(CJK_FAMILIES)}",
            stacklevel=2,
        )
    return "".join("□" if char in missing else char for char in text)


def _styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(function)
    def draw(*args, **kwargs):
        with matplotlib.rc_context(STYLE | {"font.family": _families()}):
            figure = function(*args, **kwargs)
            # ticks take their style when they are made: now, not when saved
            figure.draw_without_rendering()
        return figure

    return draw


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per name: the method's own where the name begins with a method, else the palette's
    next."""
    chosen: dict[str, str] = {}
    for name in names:
        own = [colour for method, colour in METHOD_COLOURS.items() if name.startswith(method)]
        free = [colour for colour in (*own, *PALETTE) if colour not in chosen.values()]
        chosen[name] = free[0] if free else PALETTE[len(chosen) % len(PALETTE)]
    return chosen


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write `figure` as `<name>.png` and `<name>.pdf` into `folder`, each under its name only when
    whole."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, options in {
        "png": {"dpi": 150},
        "pdf": {"metadata": {"CreationDate": None}},
    }.items():
        partial = Path(folder) / f".{name}.{suffix}.partial"
        figure.savefig(partial, format=suffix, bbox_inches="tight", **options)
        written.append(partial.replace(Path(folder) / f"{name}.{suffix}"))
    return written


def titled(figure: Figure, title: str) -> Figure:
    """The figure, higher by a bold title that says what it shows and how sure that is, broken into
    lines."""
    title = textwrap.fill(title, round(TITLE * figure.get_figwidth() / WIDTH))
    figure.set_figheight(figure.get_figheight() + 0.25 * len(title.splitlines()))
    look = {
        "x": 0.01,
        "ha": "left",
        "fontsize": 12,
        "fontweight": "bold",
        "fontfamily": _families(),
    }
    figure.suptitle(drawable(title), **look)
    return figure


#  ------------------------------------------------------------------------------------------------
# film strips


@dataclass(frozen=True)
class Strip:
    """One row of film: a video's frames, what is said about it, and what is known of each frame.

    Attributes:
        frames: (F, H, W, 3) uint8.
        label: short text left of the strip (rank, score, mark).
        caption: text above it.
        telling: bool per word of the caption (see `words_of`); these words are bold and vermilion.
        colour: border of the whole strip.
        weights: (F,) float >= 0, drawn as bars below the frames.
        informative: (F,) bool; the bar below a frame is blue where True, grey where False.
        marks: frame number -> word drawn in the frame's corner ("best", "second").
    """

    frames: np.ndarray
    label: str = ""
    caption: str = ""
    telling: Sequence[bool] | None = None
    colour: str | None = None
    weights: np.ndarray | None = None
    informative: np.ndarray | None = None
    marks: Mapping[int, str] | None = None

    def bars(self) -> np.ndarray:
        """(F,) heights in frames: the weights, or a thin line where only `informative` is known."""
        if self.weights is None:
            return np.full(len(self.frames), 0.0 if self.informative is None else 0.06)
        return 0.36 * np.asarray(self.weights, float) / max(float(np.max(self.weights)), 1e-12)


@_styled
def film_strips(strips: Sequence[Strip], title: str = "") -> Figure:
    """Strips below each other, one axes each; the axes' image is the frames side by side with white
    gaps."""
    frame_height = min(1.0, *(0.86 * WIDTH / len(strip.frames) for strip in strips))
    heights = [
        frame_height * (1.04 + strip.bars().max()) + 0.3 * bool(strip.caption) for strip in strips
    ]
    title = textwrap.fill(title, TITLE)
    size = (WIDTH, sum(heights) + 0.1 * len(strips) + 0.5 + 0.25 * len(title.splitlines()))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    for ax, strip in zip(axes, strips, strict=True):
        _draw_strip(ax, strip, _checked(strip.frames))
        ax.tick_params(length=0, labelbottom=ax is axes[-1])
    axes[-1].set_xlabel("frame")
    if title:
        figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def film_strip(frames: np.ndarray, caption: str = "", **details) -> Figure:
    """One strip; `details` are the other fields of `Strip`."""
    return film_strips([Strip(frames, caption=caption, **details)])


def top_videos(query: str, found: Sequence[tuple], note: str = "") -> Figure:
    """The videos a query found, best first: (frames, score, right, caption, telling) each, with
    rank and ✓ or ✗.

    `telling` marks words of the video's caption, for instance those that contradict the query, see
    `Strip`; `note` stands behind the query.
    """
    strips = []
    for frames, score, right, caption, telling in found:
        label = f"{len(strips) + 1} {'✓' if right else '✗'}\n{score:.3f}"
        strips.append(Strip(frames, label, caption, telling, RIGHT if right else NEUTRAL))
    return film_strips(strips, f"“{query}” {note}")


def hard_negatives(query: str, positive: tuple, negatives: Sequence[tuple]) -> Figure:
    """A query, its own video (frames, score), and what was mined: (frames, score, caption, telling)
    each.

    `telling` marks the words by which a negative's caption differs from the query, see `Strip`.
    """
    strips = [Strip(positive[0], f"own ✓\n{positive[1]:.3f}", query, colour=RIGHT)]
    for frames, score, caption, telling in negatives:
        strips.append(Strip(frames, f"mined\n{score:.3f}", caption, telling, WRONG))
    return film_strips(strips)


def words_of(caption: str) -> list[str]:
    """The caption's words; its characters where it has no blanks (Chinese)."""
    return caption.split() if " " in caption else list(caption)


def differing(words: Sequence[str], reference: Sequence[str]) -> list[bool]:
    """For each word, whether it is outside the common order of both captions: `telling` without
    truth."""
    blocks = SequenceMatcher(None, reference, words, autojunk=False).get_matching_blocks()
    kept = {block.b + offset for block in blocks for offset in range(block.size)}
    return [index not in kept for index in range(len(words))]


def _checked(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames: expected uint8 (F, H, W, 3), got {frames.dtype} {frames.shape}")
    return frames


def _mosaic(frames: np.ndarray) -> np.ndarray:
    padded = np.pad(frames, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)  # (H, F (W + 2), 3)


def _draw_strip(ax: Axes, strip: Strip, frames: np.ndarray) -> None:
    count, height, width = frames.shape[:3]
    left = np.arange(count) * (width + 2.0) + 0.5
    bottom = height * (1.04 + strip.bars().max()) - 0.5
    ax.imshow(_mosaic(frames), interpolation="nearest" if width < SMALL else "antialiased")
    informative = [True] * count if strip.informative is None else strip.informative
    for x, bar, good in zip(left, strip.bars() * height, informative, strict=True):
        ax.add_patch(
            Rectangle((x, bottom - bar), width, bar, linewidth=0, color=RIGHT if good else NEUTRAL)
        )
    for index, mark in (strip.marks or {}).items():
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        ax.text(left[index] + 3, 3, mark, fontsize=8, va="top", bbox=box)
    if strip.colour:
        border = {"fill": False, "edgecolor": strip.colour, "linewidth": 3, "clip_on": False}
        ax.add_patch(Rectangle((-0.5, -0.5), count * (width + 2), height, **border))
    ax.set_ylim(bottom, -0.5)
    ax.set_xticks(left + width / 2, [str(index) for index in range(count)], fontsize=9)
    ax.set_yticks([])
    ax.set_ylabel(strip.label, rotation=0, ha="right", va="center")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    if strip.caption:
        words = words_of(strip.caption)
        telling = [False] * len(words) if strip.telling is None else strip.telling
        looks = [{"color": WRONG, "fontweight": "bold"} if tells else {} for tells in telling]
        _draw_words(ax, words, looks, (0.0, 1.0))


def _draw_words(ax: Axes, words: Sequence[str], looks: Sequence[dict], anchor: tuple) -> None:
    """Lines of words, each with its own look, above the point `anchor` (in shares of the axes)."""
    lines, used = [[]], 0
    for word, look in zip(words, looks, strict=True):
        if used + len(word) > LINE:
            lines, used = [*lines, []], 0
        lines[-1].append(TextArea(drawable(word), textprops=look))
        used += len(word) + 1
    rows = [HPacker(children=line, pad=0, sep=6, align="baseline") for line in lines]
    box = VPacker(children=rows, pad=0, sep=7, align="left")
    where = {"bbox_to_anchor": anchor, "bbox_transform": ax.transAxes}
    ax.add_artist(
        AnchoredOffsetbox("lower left", child=box, frameon=False, pad=0.2, borderpad=0, **where)
    )


#  ------------------------------------------------------------------------------------------------
# attention


@_styled
def caption_weights(
    captions: Sequence, weights: Sequence, *, labels: Sequence[str], truth: Sequence | None = None
) -> Figure:
    """Captions with a heat background behind each word.

    Args:
        captions: rows of words (characters, for Chinese).
        weights: rows of (L,) float >= 0; one colour scale from 0 to the largest of all.
        labels: text above each row.
        truth: rows of (L,) bool; words that are True get a frame.
    """
    truth = truth or [[False] * len(words) for words in captions]
    heat = matplotlib.cm.ScalarMappable(cmap=matplotlib.colormaps["YlOrBr"])
    heat.set_clim(0, max(float(np.max(row)) for row in weights))
    rows = [1 + len(" ".join(words)) // LINE for words in captions]
    figure = Figure(figsize=(WIDTH, 0.32 * sum(rows) + 0.3 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(captions), 1, squeeze=False, gridspec_kw={"height_ratios": rows})[
        :, 0
    ]
    for ax, words, row, marked, label in zip(axes, captions, weights, truth, labels, strict=True):
        _draw_words(
            ax, words, [_heated(heat, *pair) for pair in zip(row, marked, strict=True)], (0.0, 0.0)
        )
        ax.axis("off")
        ax.set_title(drawable(label), fontsize=10, fontweight="bold")
    figure.colorbar(
        heat, ax=list(axes), orientation="horizontal", label="weight", aspect=60, fraction=0.12
    )
    return figure


def _heated(heat: matplotlib.cm.ScalarMappable, weight: float, framed: bool) -> dict:
    edge = RIGHT if framed else "none"
    box = {"facecolor": heat.to_rgba(weight), "edgecolor": edge, "pad": 2.0, "linewidth": 1.8}
    return {"bbox": box, "color": "white" if weight > 0.65 * heat.get_clim()[1] else INK}


@_styled
def word_frame_map(
    scores: np.ndarray,
    words: Sequence[str],
    frames: np.ndarray,
    *,
    label: str,
    ylabel: str = "word",
) -> Figure:
    """Scores (L, F) of words (or concepts) and frames under the frames (F, H, W, 3); ● marks each
    row's best frame."""
    scores, frames = np.asarray(scores, float), _checked(frames)
    if scores.shape != (len(words), len(frames)):
        raise ValueError(
            f"scores: expected {(len(words), len(frames))} (words, frames), got {scores.shape}"
        )
    heights = [0.85 * WIDTH / len(frames), 0.28 * len(words)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    cell = frames.shape[1] / (frames.shape[2] + 2)
    above.imshow(_mosaic(frames), extent=(-0.5, len(frames) - 0.5, 0, cell))
    above.set_anchor("S")
    above.axis("off")
    image = below.imshow(scores, cmap="cividis", aspect="auto")
    below.plot(
        scores.argmax(axis=1), np.arange(len(words)), "o", color="white", markeredgecolor=INK
    )
    below.set_yticks(range(len(words)), [drawable(word) for word in words])
    below.set_xticks(range(len(frames)))
    below.set(xlabel="frame", ylabel=ylabel)
    below.grid(visible=False)
    figure.colorbar(image, ax=[above, below], label=label, fraction=0.04)
    return figure


@_styled
def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    sure: np.ndarray | None = None,
) -> Figure:
    """Values (R, C) as colours on one scale; written into the cells where `sure` (R, C) bool says
    so."""
    values = np.asarray(values, float)
    size = (min(WIDTH, 0.62 * len(columns) + 2.4), 0.32 * len(rows) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(values, cmap="cividis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in np.argwhere(np.zeros_like(values, bool) if sure is None else sure):
        value = values[row, column]
        look = {
            "ha": "center",
            "va": "center",
            "fontsize": 9,
            "color": "white" if value < middle else INK,
        }
        ax.text(column, row, f"{value:.2g}", **look)
    ax.set_yticks(range(len(rows)), [drawable(name) for name in rows])
    turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(columns)), [drawable(name) for name in columns], **turn)
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label=label, fraction=0.05)
    return figure


@_styled
def patch_attention_overlay(
    frames: np.ndarray, attention: np.ndarray, labels: Sequence[str]
) -> Figure:
    """Frames (N, H, W, 3) above; below, the same in grey under patch attention (N, g, g), on one
    scale."""
    frames, attention = _checked(frames), np.asarray(attention, float)
    if attention.ndim != 3 or len(attention) != len(frames):
        raise ValueError(f"attention: expected ({len(frames)}, g, g), got {attention.shape}")
    width = min(WIDTH, 1.9 * len(frames) + 1.2)
    figure = Figure(figsize=(width, 2 * (width - 1.2) / len(frames) + 0.6), layout="constrained")
    axes = figure.subplots(2, len(frames), squeeze=False)
    extent = (-0.5, frames.shape[2] - 0.5, frames.shape[1] - 0.5, -0.5)
    over = {
        "cmap": "inferno",
        "vmin": 0,
        "vmax": float(attention.max()),
        "alpha": 0.65,
        "extent": extent,
    }
    for column, (frame, patches) in enumerate(zip(frames, attention, strict=True)):
        axes[0, column].imshow(frame)
        axes[0, column].set_title(drawable(labels[column]), fontsize=10)
        axes[1, column].imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        heat = axes[1, column].imshow(patches, interpolation="nearest", **over)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("frame")
    axes[1, 0].set_ylabel("attention")
    figure.colorbar(heat, ax=list(axes.flat), label="share of attention", fraction=0.04)
    return figure


# --- curves ------------------------------------------------------------------------------------
# and counts


def _plot(width: float = 7.0, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


@_styled
def loss_curve(steps: np.ndarray, losses: Lines, rates: Lines) -> Figure:
    """Losses and, in a second panel on a logarithmic axis, learning rates: name -> (S,) over steps
    (S,)."""
    figure, axes = _plot(WIDTH, columns=2)
    for ax, lines, label in zip(axes, (losses, rates), ("loss", "learning rate"), strict=True):
        for name, colour in colours(list(lines)).items():
            ax.plot(steps, lines[name], label=name, color=colour)
        ax.set(xlabel="step", ylabel=label)
        ax.legend()
    axes[1].set_yscale("log")
    return figure


@_styled
def recall_curve(
    x: Sequence,
    recalls: Lines,
    *,
    xlabel: str,
    ylabel: str,
    bands: Lines | None = None,
    chance=None,
) -> Figure:
    """Recall (%) over epochs or over K: name -> (X,), with bands (2, X) and chance (X,) as a dashed
    line."""
    figure, (ax,) = _plot()
    for name, colour in colours(list(recalls)).items():
        ax.plot(x, recalls[name], marker="o", label=name, color=colour)
        if bands:
            ax.fill_between(x, *bands[name], color=colour, alpha=0.18, linewidth=0)
    if chance is not None:
        ax.plot(x, chance, linestyle="--", color=NEUTRAL, label="chance")
    if xlabel == "K":
        ax.set_xscale("log")
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    ax.legend()
    return figure


@_styled
def panels(draws: Mapping[str, Callable[[Axes], None]], *, height: float = 3.6) -> Figure:
    """A panel per title, side by side; each function draws into the axes it is given, and labels
    them."""
    figure, axes = _plot(WIDTH, height, columns=len(draws))
    for ax, (title, draw) in zip(axes, draws.items(), strict=True):
        ax.set_title(drawable(title))
        draw(ax)
    return figure


@_styled
def curves(x: Sequence, panels: Mapping[str, tuple[Lines, Lines]], *, xlabel: str) -> Figure:
    """A panel per quantity, named by its y axis: (name -> (X,), name -> its band (2, X)); names
    have markers too."""
    figure, axes = _plot(WIDTH, columns=len(panels))
    for ax, (ylabel, (lines, bands)) in zip(axes, panels.items(), strict=True):
        for (name, colour), marker in zip(
            colours(list(lines)).items(), cycle("os^Dv"), strict=False
        ):
            ax.plot(x, lines[name], marker=marker, label=name, color=colour)
            ax.fill_between(x, *bands[name], color=colour, alpha=0.15, linewidth=0)
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=axes[0].get_xlim())
        ax.xaxis.get_major_locator().set_params(
            integer=np.issubdtype(np.asarray(x).dtype, np.integer)
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@_styled
def bars(
    groups: Sequence[str],
    values: Lines,
    *,
    xlabel: str,
    ylabel: str,
    intervals: Lines | None = None,
    chance=None,
) -> Figure:
    """Bars of G groups (factors, bins): name -> (G,), with intervals (G, 2) and a line at
    chance."""
    figure, (ax,) = _plot(width=min(WIDTH, max(6.0, (0.9 + 0.3 * len(values)) * len(groups) + 1.5)))
    step = 0.8 / len(values)
    for index, (name, colour) in enumerate(colours(list(values)).items()):
        heights = np.asarray(values[name], float)
        x = np.arange(len(groups)) + (index - (len(values) - 1) / 2) * step
        ax.bar(x, heights, step * 0.92, label=name, color=colour)
        if intervals:
            low, high = np.asarray(intervals[name], float).T
            reach = [np.maximum(heights - low, 0), np.maximum(high - heights, 0)]
            ax.errorbar(x, heights, reach, fmt="none", color=INK, linewidth=1.2, capsize=3)
    if chance is not None:
        ax.axhline(chance, linestyle="--", color=INK, linewidth=1, label="chance")
    ax.set_xticks(range(len(groups)), [drawable(group) for group in groups])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(visible=False, axis="x")
    ax.legend(
        **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(values) > 2 else {})
    )  # many: beside the bars
    return figure


def _shares(ranks: np.ndarray) -> list[float]:
    ranks = np.asarray(ranks)
    return [
        100 * float(np.mean((ranks >= low) & (ranks <= high))) for low, high in RANK_BINS.values()
    ]


def rank_histogram(ranks: Lines) -> Figure:
    """Share of queries (%) whose right answer has rank 1, 2-5, 6-10, 11-50 or more: name -> (N,)
    from 1."""
    shares = {name: _shares(values) for name, values in ranks.items()}
    return bars(list(RANK_BINS), shares, xlabel="rank of the right answer", ylabel="queries (%)")


@_styled
def histogram(values: Lines, bins: int | Sequence[float], *, xlabel: str, ylabel: str) -> Figure:
    """Shares (%) of each named set of values over common bins, as outlines that may overlap."""
    figure, (ax,) = _plot()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for name, colour in colours(list(values)).items():
        share = 100 * np.histogram(values[name], edges)[0] / max(len(values[name]), 1)
        ax.stairs(share, edges, label=name, color=colour, linewidth=2)
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.15)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return figure


@_styled
def forest_plot(
    names: Sequence[str],
    differences: Sequence,
    intervals: Sequence,
    *,
    told: Sequence[bool],
    verdicts: Sequence[str],
    xlabel: str,
) -> Figure:
    """Differences (N,) and their intervals (N, 2), each with its verdict in words; filled where
    `told`, else hollow."""
    figure, (ax,) = _plot(8.5, 0.55 * len(names) + 1.2)
    for row, (value, (low, high), sure) in enumerate(
        zip(differences, intervals, told, strict=True)
    ):
        colour = (RIGHT if value > 0 else WRONG) if sure else NEUTRAL
        ax.plot([low, high], [row, row], color=colour)
        ax.plot(
            [value],
            [row],
            "o",
            color=colour,
            markerfacecolor=colour if sure else "white",
            markersize=8,
        )
        where = {
            "xy": (1.01, row),
            "xycoords": ("axes fraction", "data"),
            "va": "center",
            "fontsize": 10,
        }
        ax.annotate(verdicts[row], **where, annotation_clip=False)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(names)), [drawable(name) for name in names])
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")
    return figure


@_styled
def ablation(
    names: Sequence[str],
    recall: np.ndarray,
    intervals: np.ndarray,
    seconds: np.ndarray,
    *,
    reference: str,
    ylabel: str,
    x: Sequence | None = None,
    xlabel: str = "",
    log: bool = False,
) -> Figure:
    """Recall (N,) in % with intervals (N, 2) of variants: by name, or as a line over `x` (N,); and
    over seconds (N,).

    The reference is filled, its recall a dashed line in both panels. Points of the right panel
    carry the letter of their variant, or its `x`. A logarithmic axis is linear below the smallest
    value above 0.
    """
    figure, (left, right) = _plot(WIDTH, max(3.2, 0.36 * len(names) + 1.2), columns=2)
    recall, marks = np.asarray(recall, float), [chr(ord("a") + row) for row in range(len(names))]
    reach = np.abs(np.asarray(intervals, float).T - recall)
    look = {"fmt": "o", "capsize": 3, "markersize": 7, "linewidth": 1.5, "markerfacecolor": "white"}
    rows = np.arange(len(names)) if x is None else np.asarray(x, float)
    if x is None:
        left.errorbar(recall, rows, xerr=reach, color=RIGHT, **look)
        left.set_yticks(
            rows, [f"{drawable(name)}  {mark}" for name, mark in zip(names, marks, strict=True)]
        )
        left.set(xlabel=ylabel, ylim=(len(names) - 0.5, -0.5))
    else:
        marks = [f"{value:g}" for value in rows]
        left.errorbar(rows, recall, yerr=reach, color=RIGHT, **look | {"fmt": "o-"})
        if log:
            left.set_xscale("symlog", linthresh=rows[rows > 0].min())
        left.set_xticks(rows, marks)
        left.minorticks_off()
        left.set(xlabel=xlabel, ylabel=ylabel)
    right.errorbar(
        seconds,
        recall,
        yerr=reach,
        color=RIGHT,
        ecolor=NEUTRAL,
        **look | {"linewidth": 1, "capsize": 0},
    )
    for point, mark in zip(zip(seconds, recall, strict=True), marks, strict=True):
        right.annotate(mark, point, (6, 5), textcoords="offset points", fontsize=10)
    around = max(
        0.6 * np.ptp(seconds), 0.15 * np.mean(seconds)
    )  # equal costs are not to look different
    right.set(xlabel="training time (s)", ylabel=ylabel)
    right.set_xlim(*(np.min(seconds) + np.ptp(seconds) / 2 + np.array([-around, around])))
    right.margins(y=0.12)
    if reference in names:
        row = list(names).index(reference)
        along = (left.axvline if x is None else left.axhline, right.axhline)
        for line in along:
            line(recall[row], zorder=0, linestyle="--", linewidth=1, color=NEUTRAL)
        place = (recall[row], rows[row]) if x is None else (rows[row], recall[row])
        left.plot(*place, "o", color=RIGHT, markersize=7, zorder=3)
        right.plot(seconds[row], recall[row], "o", color=RIGHT, markersize=7, zorder=3)
    return figure


@_styled
def embedding(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], stories: Sequence[tuple]
) -> Figure:
    """Texts (N_t, 2) and videos (N_v, 2) in a panel per title; of each story the same points in
    every panel.

    Args:
        panels: title -> texts and videos.
        stories: (text, its own video, mined videos) by number; ★ the text, ● its own video, ✕ mined
            ones, joined to it.
    """
    figure, axes = _plot(WIDTH, 4.8, columns=len(panels))
    joined = [("own video", "o", RIGHT, "-"), ("mined video", "X", WRONG, ":")]
    for ax, (title, (texts, videos)) in zip(axes, panels.items(), strict=True):
        ax.plot(*texts.T, ".", color=NEUTRAL, markersize=4, alpha=0.6, label="texts")
        ax.plot(*videos.T, "s", color="#56B4E9", markersize=4, alpha=0.6, label="videos", zorder=1)
        for number, (text, own, mined) in enumerate(stories, 1):
            for columns, (label, marker, colour, line) in zip(([own], mined), joined, strict=True):
                for column in columns:
                    ax.plot(
                        *np.stack([texts[text], videos[column]]).T,
                        line,
                        color=colour,
                        linewidth=1.2,
                    )
                named = label if number == 1 else None
                ax.plot(
                    *videos[list(columns)].T,
                    marker,
                    color=colour,
                    markersize=8,
                    label=named,
                    linestyle="none",
                )
            ax.plot(
                *texts[text],
                "*",
                color=INK,
                markersize=13,
                label="query" if number == 1 else None,
                linestyle="none",
            )
            ax.annotate(
                str(number),
                texts[text],
                textcoords="offset points",
                xytext=(6, 5),
                fontweight="bold",
            )
        ax.set_title(drawable(title))
        ax.set(xlabel="first main axis", ylabel="second main axis")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
