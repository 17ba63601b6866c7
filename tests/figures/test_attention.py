"""The arrays behind pictures of attention."""

import numpy as np
import pytest
from matplotlib.offsetbox import TextArea

from tvrkit import figures

SIDE = 16


def test_caption_weights_colour_by_weight_and_frame_the_truth():
    weights = [np.array([0.0, 0.5, 1.0])]
    figure = figures.caption_weights(
        [["a", "red", "dot"]], weights, labels=["row"], truth=[[False, True, True]]
    )
    boxes = [area.get_children()[0].get_bbox_patch() for area in figure.axes[0].findobj(TextArea)]
    lightness = [sum(box.get_facecolor()[:3]) for box in boxes]
    assert lightness == sorted(lightness, reverse=True)
    assert lightness[0] > lightness[2] + 1
    assert [box.get_edgecolor()[3] > 0 for box in boxes] == [False, True, True]
    assert figure.axes[-1].get_xlabel() == "weight"
    with pytest.raises(ValueError, match="zip"):
        figures.caption_weights([["a", "red"]], weights, labels=["row"])


def test_two_weights_get_a_legend_and_no_colour_bar():
    figure = figures.caption_weights([["a", "dot"]], [np.array([1, 2])], labels=["row"])
    assert len(figure.axes) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["weight 1", "weight 2"]


def test_long_captions_wrap_instead_of_leaving_the_page():
    figure = figures.caption_weights([["word"] * 60], [np.ones(60)], labels=[""])
    right = max(box.get_window_extent().x1 for box in figure.findobj(TextArea))
    assert right <= figure.bbox.width


def test_word_frame_map_shows_scores_and_best_frames(frames, rng):
    scores = rng.random((3, 5))
    above, below, bar = figures.word_frame_map(
        scores, ["a", "red", "dot"], frames, label="cosine"
    ).axes
    np.testing.assert_array_equal(below.images[0].get_array(), scores)
    np.testing.assert_array_equal(below.lines[0].get_xdata(), scores.argmax(1))
    assert above.images[0].get_array().shape[:2] == (SIDE, 5 * (SIDE + 2))
    assert [label.get_text() for label in below.get_yticklabels()] == ["a", "red", "dot"]
    assert bar.get_ylabel() == "cosine"
    with pytest.raises(ValueError, match=r"expected \(2, 5\)"):
        figures.word_frame_map(scores, ["a", "red"], frames, label="cosine")


def test_patch_attention_lies_over_the_whole_frame_on_one_scale(frames, rng):
    attention = rng.random((5, 4, 4))
    figure = figures.patch_attention_overlay(frames, attention, [f"frame {i}" for i in range(5)])
    below = figure.axes[5:10]
    for ax, patches in zip(below, attention, strict=True):
        heat = ax.images[1]
        np.testing.assert_array_equal(heat.get_array(), patches)
        assert heat.get_extent() == [-0.5, SIDE - 0.5, SIDE - 0.5, -0.5]
        assert heat.get_clim() == (0, attention.max())
    with pytest.raises(ValueError, match=r"expected \(5, g, g\)"):
        figures.patch_attention_overlay(frames, attention[:2], ["a", "b"])
