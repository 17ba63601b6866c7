"""Colours, titles, fonts and files."""

import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont

from tvrkit import figures
from tvrkit.figures import style

SIDE = 16


def test_long_titles_are_broken_into_lines(frames):
    title = figures.film_strips([figures.Strip(frames)], title="word " * 40).get_suptitle()
    assert max(map(len, title.splitlines())) <= style.TITLE
    assert title.split() == ["word"] * 40


@pytest.fixture
def font_manager(monkeypatch):
    """A Matplotlib that has seen no Chinese font; what it learns is forgotten after the test."""
    latin = [font for font in style.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(style.fontManager, "ttflist", latin)
    monkeypatch.setattr(style, "findSystemFonts", lambda: [])
    style.font_families.cache_clear()
    yield monkeypatch
    style.font_families.cache_clear()


def chinese_font(path):
    """A font of a known family that draws 红 as an A."""
    font = TTFont(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf")
    for name in font["name"].names:
        if name.nameID in (1, 4, 16):
            name.string = "Noto Sans CJK SC"
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap[ord("红")] = table.cmap[ord("A")]
    font.save(path)
    return str(path)


def test_a_font_installed_after_matplotlib_looked_is_found(font_manager, frames, tmp_path):
    fonts = [chinese_font(tmp_path / "new.ttf"), str(tmp_path / "gone.ttf")]
    font_manager.setattr(style, "findSystemFonts", lambda: fonts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.film_strips([figures.Strip(frames, caption="a red circle ✓ 红")])
    assert style.font_families() == ["DejaVu Sans", "Noto Sans CJK SC"]


def test_a_title_makes_the_figure_higher():
    axes = {"xlabel": "x", "ylabel": "y"}
    plain = figures.histogram({"a": np.arange(9.0)}, 3, **axes)
    named = figures.histogram({"a": np.arange(9.0)}, 3, **axes, title="word " * 30)
    lines = len(named.get_suptitle().splitlines())
    assert lines > 1
    assert named.get_figheight() == pytest.approx(plain.get_figheight() + 0.25 * lines)


def test_colours_follow_the_method_and_never_repeat_while_there_are_others():
    chosen = figures.colours(["dmae", "dmae_no_negnce", "clip4clip_shapes", "anything"])
    assert chosen["dmae"] == figures.METHOD_COLOURS["dmae"]
    assert chosen["clip4clip_shapes"] == figures.METHOD_COLOURS["clip4clip"]
    assert len(set(chosen.values())) == 4
    assert len(figures.colours([str(i) for i in range(20)])) == 20


def test_save_writes_both_formats_whole_and_nothing_else(tmp_path, frames):
    figure = figures.film_strips([figures.Strip(frames)])
    assert figures.save(figure, tmp_path / "figures", "strip") is figure
    png, pdf = (tmp_path / "figures" / f"strip.{suffix}" for suffix in ("png", "pdf"))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in pdf.read_bytes()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["strip.pdf", "strip.png"]
    (tmp_path / "figures" / "taken.png").mkdir()
    with pytest.raises(IsADirectoryError):
        figures.save(figure, tmp_path / "figures", "taken")


def test_no_figure_stays_open_and_no_style_leaks(frames):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    figures.film_strips([figures.Strip(frames)])
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
