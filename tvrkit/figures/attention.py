"""Attention drawn on words, frames and patches."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tvrkit.figures.strips import check_frames, draw_words, side_by_side
from tvrkit.figures.style import INK, LINE, RIGHT, WIDTH, Options, styled
from tvrkit.files import expect


@styled
def caption_weights(
    captions: Sequence, weights: Sequence, *, labels: Sequence[str], truth: Sequence | None = None
) -> Figure:
    """Captions with a heat background behind each word.

    Args:
        captions: rows of words (characters, for Chinese).
        weights: rows of (L,) float >= 0; one colour scale from 0 to the largest of all. Where they
            take two values at most, a legend names those; else there is a colour bar.
        labels: text above each row.
        truth: rows of (L,) bool; words that are True get a frame.
    """
    truth = truth or [[False] * len(words) for words in captions]
    heat = ScalarMappable(cmap=matplotlib.colormaps["YlOrBr"])
    heat.set_clim(0, max(float(np.max(row)) for row in weights))
    heights = [1 + len(" ".join(words)) // LINE for words in captions]
    size = (WIDTH, 0.32 * sum(heights) + 0.3 * len(heights) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    rows = zip(axes, captions, weights, truth, labels, strict=True)
    for ax, words, values, framed, label in rows:
        looks = [_heated(heat, *pair) for pair in zip(values, framed, strict=True)]
        draw_words(ax, words, looks, corner="upper left")
        ax.axis("off")
        ax.set_title(label, fontsize=10, fontweight="bold")
    levels = np.unique(np.concatenate([np.asarray(row, float) for row in weights]))
    if len(levels) > 2:
        below: Options = {"orientation": "horizontal", "aspect": 60, "fraction": 0.12}
        figure.colorbar(heat, ax=figure.axes, label="weight", **below)
    else:
        patches = [Patch(color=tuple(heat.to_rgba(v)), label=f"weight {v:g}") for v in levels]
        figure.legend(handles=patches, loc="outside lower left", ncols=2)
    return figure


def _heated(heat: ScalarMappable, weight, framed: bool) -> dict:
    edge = RIGHT if framed else "none"
    box = {"facecolor": heat.to_rgba(weight), "edgecolor": edge, "pad": 2.0, "linewidth": 1.8}
    return {"bbox": box, "color": "white" if weight > 0.65 * heat.get_clim()[1] else INK}


@styled
def word_frame_map(
    scores: np.ndarray,
    words: Sequence[str],
    frames: np.ndarray,
    *,
    label: str,
    ylabel: str = "word",
) -> Figure:
    """Scores (L, F) of words (or concepts) below the frames (F, H, W, 3); ● is a row's best."""
    scores, frames = np.asarray(scores, float), check_frames(frames)
    size = len(words), len(frames)
    expect(scores.shape == size, "scores", f"{size} (words, frames)", scores.shape)
    heights = [0.85 * WIDTH / len(frames), 0.28 * len(words)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    cell = frames.shape[1] / (frames.shape[2] + 2)
    above.imshow(side_by_side(frames), extent=(-0.5, len(frames) - 0.5, 0, cell))
    above.set_anchor("S")
    above.axis("off")
    image = below.imshow(scores, cmap="cividis", aspect="auto")
    rows = np.arange(len(words))
    below.plot(scores.argmax(axis=1), rows, "o", color="white", markeredgecolor=INK)
    below.set_yticks(rows, words)
    below.set_xticks(range(len(frames)))
    below.set(xlabel="frame", ylabel=ylabel)
    below.grid(visible=False)
    figure.colorbar(image, ax=[above, below], label=label, fraction=0.04)
    return figure


@styled
def patch_attention_overlay(
    frames: np.ndarray, attention: np.ndarray, labels: Sequence[str]
) -> Figure:
    """Frames (N, H, W, 3), and below, in grey, under patch attention (N, g, g), on one scale."""
    frames, attention = check_frames(frames), np.asarray(attention, float)
    fits = attention.ndim == 3 and len(attention) == len(frames)
    expect(fits, "attention", f"({len(frames)}, g, g)", attention.shape)
    width = min(WIDTH, 1.9 * len(frames) + 1.2)
    figure = Figure(figsize=(width, 2 * (width - 1.2) / len(frames) + 0.6), layout="constrained")
    axes = figure.subplots(2, len(frames), squeeze=False)
    extent = (-0.5, frames.shape[2] - 0.5, frames.shape[1] - 0.5, -0.5)
    scale: Options = {"cmap": "inferno", "vmin": 0, "vmax": float(attention.max()), "alpha": 0.65}
    columns = zip(*axes, frames, attention, labels, strict=True)
    for above, below, frame, patches, label in columns:
        above.imshow(frame)
        above.set_title(label, fontsize=10)
        below.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        heat = below.imshow(patches, interpolation="nearest", extent=extent, **scale)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("frame")
    axes[1, 0].set_ylabel("attention")
    figure.colorbar(heat, ax=list(axes.flat), label="share of attention", fraction=0.04)
    return figure
