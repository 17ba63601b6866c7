"""Frames, words and marks behind film strips."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.offsetbox import TextArea

from tvrkit import figures

SIDE = 16


def words(ax):
    """(word, colour) of every word drawn in boxes on `ax`."""
    texts = [area.get_children()[0] for area in ax.findobj(TextArea)]
    return [(text.get_text(), text.get_color()) for text in texts]


def test_a_strip_shows_every_frame_unchanged(frames):
    (ax,) = figures.film_strips([figures.Strip(frames, caption="a red circle")]).axes
    shown = ax.images[0].get_array()
    assert shown.shape == (SIDE, 5 * (SIDE + 2), 3)
    for index, frame in enumerate(frames):
        left = index * (SIDE + 2) + 1
        np.testing.assert_array_equal(shown[:, left : left + SIDE], frame)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3", "4"]
    assert ax.get_xlabel() == "frame"
    assert [word for word, _ in words(ax)] == ["a", "red", "circle"]


def test_bars_of_a_strip_are_the_weights_and_grey_where_uninformative(frames):
    weights = np.array([0.1, 0.4, 0.2, 0.0, 0.3])
    informative = np.array([True, True, False, True, True])
    strip = figures.Strip(frames, weights=weights, informative=informative)
    (ax,) = figures.film_strips([strip]).axes
    heights = np.array([bar.get_height() for bar in ax.patches])
    np.testing.assert_allclose(heights / heights.max(), weights / weights.max())
    grey = [bar.get_facecolor() == to_rgba(figures.NEUTRAL) for bar in ax.patches]
    assert grey == [False, False, True, False, False]


@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_frames_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected uint8 \(F, H, W, 3\), got"):
        figures.film_strips([figures.Strip(wrong)])


def test_top_videos_mark_the_right_one_and_the_words_that_the_query_lacks(frames):
    videos = [
        (1, 0.9, False, frames, "a blue dot", None),
        (2, 0.5, False, frames, "a red dot", [False, False, True]),
        (9, 0.1, True, frames, "a bright dot", None),
    ]
    figure = figures.top_videos("a dot", videos, "(rank 9)")
    assert [ax.get_ylabel() for ax in figure.axes] == ["1 ✗\n0.900", "2 ✗\n0.500", "9 ✓\n0.100"]
    borders = [ax.patches[-1].get_edgecolor() for ax in figure.axes]
    assert borders == [to_rgba(figures.NEUTRAL), to_rgba(figures.NEUTRAL), to_rgba(figures.RIGHT)]
    assert figure.get_suptitle() == "“a dot” (rank 9)"
    marked = [[w for w, colour in words(ax) if colour == figures.WRONG] for ax in figure.axes]
    assert marked == [["blue"], ["dot"], []]


def test_strips_with_and_without_a_caption_stand_below_each_other(frames):
    strips = [figures.Strip(frames, "a", "one line"), figures.Strip(frames, "b")]
    first, second = figures.film_strips(strips).axes
    np.testing.assert_allclose(
        first.get_position().intervalx, second.get_position().intervalx, atol=2e-3
    )
    np.testing.assert_allclose(first.get_position().height, second.get_position().height, rtol=0.01)


@pytest.mark.parametrize("letter", ["word ", "词", "x"])
def test_a_caption_of_a_megabyte_is_shortened_in_a_figure(frames, letter):
    caption = letter * (10**6 // len(letter))
    highlight = [True] * len(caption.split() if " " in caption else caption)
    videos = [(1, 0.5, False, frames, caption, None), (2, 0.5, False, frames, caption, highlight)]
    figure = figures.top_videos(caption, videos)
    for axes in figure.axes:
        shown = "".join(word for word, _ in words(axes))
        assert 300 < len(shown) <= 401
        assert shown.endswith("…")
    assert figure.get_suptitle().count("\n") < 6
    assert figure.get_suptitle().endswith("[...]")


def test_dollars_and_braces_in_a_caption_are_text(frames):
    caption = r"it costs $5 {or} $6_a^b \alpha"
    figure = figures.top_videos(caption, [(1, 0.5, True, frames, caption, None)])
    assert [word for word, _ in words(figure.axes[0])] == caption.split()


def test_a_swap_of_two_events_counts_as_a_difference():
    there, back = "red then blue", "blue then red"
    assert figures.differing_words(there, there) == [False] * 3
    assert sum(figures.differing_words(back, there)) == 2
    assert figures.split_words("红色的圆") == ["红", "色", "的", "圆"]
