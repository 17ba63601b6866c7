"""What all figures share: colours, fonts, title and files.

Colours are Okabe and Ito's, which colour-blind readers tell apart; what a colour says, a mark, a
label or a position says too. Figures are built without pyplot, so none stays open in a long run.
"""

import textwrap
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager

from tvrkit import files

Options = dict[str, Any]  # of Matplotlib's functions
INK, NEUTRAL, RIGHT, WRONG = "#222222", "#9A9A9A", "#0072B2", "#D55E00"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666")
METHOD_COLOURS = {"clip4clip": "#666666", "dmae": "#0072B2", "hmmc": "#009E73", "glscl": "#D55E00"}
LOOK = files.ASSETS / "figures.mplstyle"
STYLE = matplotlib.rc_params_from_file(LOOK, use_default_template=False)
WIDTH = 10.0  # inches: the text width of a notebook page
TITLE = 82  # characters of a bold title of 12 points on one line of that width
LINE = 105  # characters of 11 points on one line of that width


@cache
def font_families() -> list[str]:
    """The style's font families that are installed: one for Latin text, the others for Chinese.

    Matplotlib remembers the fonts it once found: where none is Chinese, it is told of those that
    have been installed since.
    """
    latin, *chinese = STYLE["font.family"]
    if {font.name for font in fontManager.ttflist}.isdisjoint(chinese):
        for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
            with suppress(OSError, RuntimeError):  # a font that Matplotlib can't read
                fontManager.addfont(path)
    installed = {font.name for font in fontManager.ttflist}
    return [latin, *(name for name in chinese if name in installed)]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function in this style; it takes `title` too: what the figure shows, in bold above it."""

    @wraps(draw)
    def draw_styled(*args, title: str = "", **options) -> Figure:
        with matplotlib.rc_context({**STYLE, "font.family": font_families()}):
            figure = draw(*args, **options)
            if title:
                _add_title(figure, title)
            figure.draw_without_rendering()  # ticks take their style when they are made: now
        return figure

    return draw_styled


def _add_title(figure: Figure, title: str) -> None:
    """Make the figure higher by a bold title, broken into lines."""
    lines = textwrap.wrap(title, round(TITLE * figure.get_figwidth() / WIDTH), max_lines=6)
    figure.set_figheight(figure.get_figheight() + 0.25 * len(lines))
    figure.suptitle("\n".join(lines), x=0.01, ha="left")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per name: its method's where the name begins with one, else the palette's next."""
    chosen: dict[str, str] = {}
    for name in names:
        own = [colour for method, colour in METHOD_COLOURS.items() if name.startswith(method)]
        free = [colour for colour in (*own, *PALETTE) if colour not in chosen.values()]
        chosen[name] = free[0] if free else PALETTE[len(chosen) % len(PALETTE)]
    return chosen


def save(figure: Figure, folder: Path | str, name: str) -> Figure:
    """Write `figure` as `<name>.png` and `<name>.pdf`, each only when whole; returns the figure."""
    options: dict[str, dict] = {"png": {"dpi": 150}, "pdf": {"metadata": {"CreationDate": None}}}
    for suffix, details in options.items():
        with files.replacing(Path(folder) / f"{name}.{suffix}") as part:
            figure.savefig(part, format=suffix, bbox_inches="tight", **details)
    return figure
