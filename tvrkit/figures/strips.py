"""Film strips: the frames of videos side by side, with what is said and known about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
from matplotlib.patches import Rectangle

from tvrkit.figures.style import LINE, NEUTRAL, RIGHT, WIDTH, WRONG, Options, styled

LONGEST = 400  # characters of a caption in a figure
SMALL = 100  # pixels; narrower frames are enlarged, and stay sharp without smoothing


@dataclass(frozen=True)
class Strip:
    """One row of film: a video's frames, what is said about it, and what is known of each frame.

    Attributes:
        frames: (F, H, W, 3) uint8.
        label: short text left of the strip (rank, score, mark).
        caption: text above it.
        highlight: bool per word of the caption (see `split_words`): bold and vermilion.
        colour: border of the whole strip.
        weights: (F,) float >= 0, drawn as bars below the frames.
        informative: (F,) bool; the bar below a frame is blue where True, grey where False.
        marks: frame number -> word drawn in the frame's corner ("best", "second").
    """

    frames: np.ndarray
    label: str = ""
    caption: str = ""
    highlight: Sequence[bool] | None = None
    colour: str | None = None
    weights: np.ndarray | None = None
    informative: np.ndarray | None = None
    marks: Mapping[int, str] | None = None

    def bars(self) -> np.ndarray:
        """(F,) heights in frames: the weights, or a thin line where only `informative` is known."""
        if self.weights is None:
            return np.full(len(self.frames), 0.0 if self.informative is None else 0.06)
        return 0.36 * np.asarray(self.weights, float) / max(float(np.max(self.weights)), 1e-12)


@styled
def film_strips(strips: Sequence[Strip]) -> Figure:
    """Strips below each other; an axes' image is the frames side by side with white gaps."""
    height = min(1.0, *(0.86 * WIDTH / len(strip.frames) for strip in strips))
    heights = [height * (1.04 + strip.bars().max()) for strip in strips]
    above = [0.1 + 0.3 * bool(strip.caption) for strip in strips]  # a caption, or a gap
    figure = Figure(figsize=(WIDTH, sum(heights) + sum(above) + 0.5), layout="constrained")
    layout: Options = {"height_ratios": heights, "subplot_kw": {"anchor": "W"}}
    axes = figure.subplots(len(strips), 1, squeeze=False, **layout)[:, 0]
    for ax, strip in zip(axes, strips, strict=True):
        _draw_strip(ax, strip, check_frames(strip.frames))
        ax.tick_params(length=0, labelbottom=ax is axes[-1])
    axes[-1].set_xlabel("frame")
    return figure


def top_videos(query: str, videos: Sequence[tuple], note: str = "") -> Figure:
    """The videos that a query finds, with rank and ✓ or ✗.

    Args:
        query: the text.
        videos: (rank, score, right, frames, caption, highlight) each, as
            `tvrkit.inspection.gallery` makes them; `highlight` marks words of the caption that
            contradict the query, see `Strip`. Where it is None, those that the query lacks.
        note: stands behind the query.
    """
    strips = []
    for rank, score, right, frames, caption, highlight in videos:
        if highlight is None and not right:
            highlight = differing_words(caption, query)
        label = f"{rank} {'✓' if right else '✗'}\n{score:.3f}"
        strips.append(Strip(frames, label, caption, highlight, RIGHT if right else NEUTRAL))
    return film_strips(strips, title=f"“{query}” {note}")


def split_words(caption: str) -> list[str]:
    """The words of a caption's first `LONGEST` characters; its characters where it has no blanks
    (Chinese)."""
    shown = caption if len(caption) <= LONGEST else f"{caption[:LONGEST]}…"
    return shown.split() if " " in shown else list(shown)


def differing_words(caption: str, reference: str) -> list[bool]:
    """For each word of a caption, whether it is outside the order common to both captions."""
    words = split_words(caption)
    matcher = SequenceMatcher(None, split_words(reference), words, autojunk=False)
    differs = [True] * len(words)
    for block in matcher.get_matching_blocks():
        differs[block.b : block.b + block.size] = [False] * block.size
    return differs


def check_frames(frames: np.ndarray) -> np.ndarray:
    """The frames as an array; ValueError unless uint8 (F, H, W, 3)."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames: expected uint8 (F, H, W, 3), got {frames.dtype} {frames.shape}")
    return frames


def side_by_side(frames: np.ndarray) -> np.ndarray:
    """(H, F (W + 2), 3): one image of the frames (F, H, W, 3), with a white line at each side."""
    padded = np.pad(frames, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)


def _draw_strip(ax: Axes, strip: Strip, frames: np.ndarray) -> None:
    count, height, width = frames.shape[:3]
    left = np.arange(count) * (width + 2.0) + 0.5
    bottom = height * (1.04 + strip.bars().max()) - 0.5
    smooth = "nearest" if width < SMALL else "antialiased"
    ax.imshow(side_by_side(frames), interpolation=smooth)
    shows = np.ones(count, bool) if strip.informative is None else strip.informative
    bars, colours = strip.bars() * height, np.where(shows, RIGHT, NEUTRAL)
    ax.bar(left, bars, width, bottom - bars, align="edge", color=colours)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    for index, mark in (strip.marks or {}).items():
        ax.text(left[index] + 3, 3, mark, fontsize=8, va="top", bbox=box)
    if strip.colour:
        border: Options = {"fill": False, "edgecolor": strip.colour, "linewidth": 3}
        ax.add_patch(Rectangle((-0.5, -0.5), count * (width + 2), height, clip_on=False, **border))
    ax.set(xlim=(-0.5, count * (width + 2) - 0.5), ylim=(bottom, -0.5))
    ax.set_xticks(left + width / 2, [str(index) for index in range(count)], fontsize=9)
    ax.set_yticks([])
    ax.set_ylabel(strip.label, rotation=0, ha="right", va="center")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    words = split_words(strip.caption)
    highlight = [False] * len(words) if strip.highlight is None else strip.highlight[: len(words)]
    looks = [{"color": WRONG, "fontweight": "bold"} if marked else {} for marked in highlight]
    draw_words(ax, words, looks)


def draw_words(
    ax: Axes, words: Sequence[str], looks: Sequence[dict], *, corner: str = "lower left"
) -> None:
    """Lines of words, each with its own look, with `corner` in the upper left corner of the axes:
    "lower left" writes above the axes, "upper left" inside."""
    lines: list[list[Artist]] = [[]]
    used = 0
    for word, look in zip(words, looks, strict=True):
        if used + len(word) > LINE:
            lines.append([])
            used = 0
        lines[-1].append(TextArea(word, textprops=look))
        used += len(word) + 1
    rows: list[Artist] = [HPacker(children=line, pad=0, sep=6, align="baseline") for line in lines]
    box = VPacker(children=rows, pad=0, sep=7, align="left")
    options: Options = {"frameon": False, "pad": 0.2, "borderpad": 0}
    place: Options = {"bbox_to_anchor": (0.0, 1.0), "bbox_transform": ax.transAxes}
    ax.add_artist(AnchoredOffsetbox(corner, child=box, **options, **place))
