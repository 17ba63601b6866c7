"""The arrays, positions and texts behind the figures."""

import warnings

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.offsetbox import TextArea
from matplotlib.text import Text

from tvrkit.figures import style as viz

SIDE = 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def frames(rng):
    return rng.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


def words(ax):
    """(word, colour) of every word drawn in boxes on `ax`."""
    texts = [area.get_children()[0] for area in ax.findobj(TextArea)]
    return [(text.get_text(), text.get_color()) for text in texts]


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text)}


def test_a_strip_shows_every_frame_unchanged(frames):
    (ax,) = viz.film_strip(frames, "a red circle").axes
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
    (ax,) = viz.film_strip(frames, weights=weights, informative=informative).axes
    heights = np.array([bar.get_height() for bar in ax.patches])
    np.testing.assert_allclose(heights / heights.max(), weights / weights.max())
    grey = [bar.get_facecolor() == to_rgba(viz.NEUTRAL) for bar in ax.patches]
    assert grey == [False, False, True, False, False]


@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_frames_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected uint8 \(F, H, W, 3\), got"):
        viz.film_strip(wrong)


def test_top_videos_mark_the_right_one(frames):
    found = [
        (frames, 0.9, False, "a blue dot", [False, True, False]),
        (frames, 0.5, True, "a dot", None),
        (frames, 0.1, False, "z", None),
    ]
    assert viz.top_videos("a dot", found).get_suptitle() == "“a dot”"
    figure = viz.top_videos("a dot", found, "(rank 2)")
    assert [ax.get_ylabel() for ax in figure.axes] == ["1 ✗\n0.900", "2 ✓\n0.500", "3 ✗\n0.100"]
    borders = [ax.patches[-1].get_edgecolor() for ax in figure.axes]
    assert borders == [to_rgba(viz.NEUTRAL), to_rgba(viz.RIGHT), to_rgba(viz.NEUTRAL)]
    assert figure.get_suptitle() == "“a dot” (rank 2)"
    assert [word for word, colour in words(figure.axes[0]) if colour == viz.WRONG] == ["blue"]


def test_long_titles_are_broken_into_lines(frames):
    title = viz.film_strips([viz.Strip(frames)], "word " * 40).get_suptitle()
    assert max(map(len, title.splitlines())) <= viz.TITLE
    assert title.split() == ["word"] * 40


def test_hard_negatives_highlight_the_telling_words(frames):
    query, caption = "a small red circle", "a small blue circle"
    telling = viz.differing(viz.words_of(caption), viz.words_of(query))
    figure = viz.hard_negatives(query, (frames, 0.6), [(frames, 0.61, caption, telling)])
    own, mined = figure.axes
    assert {colour for _, colour in words(own)} == {viz.INK}
    assert [word for word, colour in words(mined) if colour == viz.WRONG] == ["blue"]
    assert (own.get_ylabel(), mined.get_ylabel()) == ("own ✓\n0.600", "mined\n0.610")
    with pytest.raises(ValueError, match="zip"):
        viz.film_strip(frames, caption, telling=[True])


def test_a_swap_of_two_events_counts_as_a_difference():
    there, back = ["red", "then", "blue"], ["blue", "then", "red"]
    assert viz.differing(there, there) == [False] * 3
    assert sum(viz.differing(there, back)) == 2
    assert viz.words_of("红色的圆") == ["红", "色", "的", "圆"]


def test_caption_weights_colour_by_weight_and_frame_the_truth():
    weights = [np.array([0.0, 0.5, 1.0])]
    figure = viz.caption_weights(
        [["a", "red", "dot"]], weights, labels=["row"], truth=[[False, True, True]]
    )
    boxes = [area.get_children()[0].get_bbox_patch() for area in figure.axes[0].findobj(TextArea)]
    lightness = [sum(box.get_facecolor()[:3]) for box in boxes]
    assert lightness == sorted(lightness, reverse=True)
    assert lightness[0] > lightness[2] + 1
    assert [box.get_edgecolor()[3] > 0 for box in boxes] == [False, True, True]
    assert figure.axes[-1].get_xlabel() == "weight"
    with pytest.raises(ValueError, match="zip"):
        viz.caption_weights([["a", "red"]], weights, labels=["row"])


def test_long_captions_wrap_instead_of_leaving_the_page():
    figure = viz.caption_weights([["word"] * 60], [np.ones(60)], labels=[""])
    right = max(box.get_window_extent().x1 for box in figure.findobj(TextArea))
    assert right <= figure.bbox.width


def test_chinese_is_drawn_or_replaced_with_a_clear_warning(monkeypatch):
    monkeypatch.setattr(viz, "_glyphs", lambda: frozenset(range(128)))
    viz.drawable.cache_clear()
    with pytest.warns(UserWarning, match="install fonts-noto-cjk"):
        assert viz.drawable("红 red") == "□ red"
    viz.drawable.cache_clear()
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert viz.drawable("a red circle ✓") == "a red circle ✓"


def test_word_frame_map_shows_scores_and_best_frames(frames, rng):
    scores = rng.random((3, 5))
    above, below, bar = viz.word_frame_map(scores, ["a", "red", "dot"], frames, label="cosine").axes
    np.testing.assert_array_equal(below.images[0].get_array(), scores)
    np.testing.assert_array_equal(below.lines[0].get_xdata(), scores.argmax(1))
    assert above.images[0].get_array().shape[:2] == (SIDE, 5 * (SIDE + 2))
    assert [label.get_text() for label in below.get_yticklabels()] == ["a", "red", "dot"]
    assert bar.get_ylabel() == "cosine"
    with pytest.raises(ValueError, match=r"expected \(2, 5\)"):
        viz.word_frame_map(scores, ["a", "red"], frames, label="cosine")


def test_heat_map_writes_only_the_values_one_can_be_sure_of(rng):
    values = rng.random((2, 3))
    sure = np.array([[True, False, False], [False, False, True]])
    figure = viz.heat_map(
        values, ["concept 1", "concept 2"], ["a", "red", "dot"], label="lift", sure=sure
    )
    ax, bar = figure.axes
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): f"{values[0, 0]:.2g}", (2, 1): f"{values[1, 2]:.2g}"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "red", "dot"]
    assert bar.get_ylabel() == "lift"
    assert not list(viz.heat_map(values, ["1", "2"], list("abc"), label="").axes[0].texts)


def test_curves_have_a_panel_per_quantity_with_bands_and_markers():
    lines = {"highest": np.array([9.0, 2]), "random": np.array([9.0, 7])}
    bands = {name: np.stack([line - 1, line + 1]) for name, line in lines.items()}
    left, right = viz.curves(
        [0, 50], {"score": (lines, bands), "R@1 (%)": (lines, bands)}, xlabel="removed (%)"
    ).axes
    assert (left.get_ylabel(), right.get_ylabel(), left.get_xlabel()) == (
        "score",
        "R@1 (%)",
        "removed (%)",
    )
    for line, name in zip(right.lines, lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), lines[name])
    assert len({line.get_marker() for line in right.lines}) == 2
    assert right.collections[0].get_datalim(right.transData).y1 == 10


def test_a_title_is_broken_and_makes_the_figure_higher():
    figure = viz.histogram({"a": np.arange(9.0)}, 3, xlabel="x", ylabel="y")
    height = figure.get_figheight()
    assert viz.titled(figure, "word " * 30) is figure
    lines = figure.get_suptitle().splitlines()
    assert len(lines) > 1
    assert figure.get_figheight() == pytest.approx(height + 0.25 * len(lines))


def test_patch_attention_lies_over_the_whole_frame_on_one_scale(frames, rng):
    attention = rng.random((5, 4, 4))
    figure = viz.patch_attention_overlay(frames, attention, [f"frame {i}" for i in range(5)])
    below = figure.axes[5:10]
    for ax, patches in zip(below, attention, strict=True):
        heat = ax.images[1]
        np.testing.assert_array_equal(heat.get_array(), patches)
        assert heat.get_extent() == [-0.5, SIDE - 0.5, SIDE - 0.5, -0.5]
        assert heat.get_clim() == (0, attention.max())
    with pytest.raises(ValueError, match=r"expected \(5, g, g\)"):
        viz.patch_attention_overlay(frames, attention[:2], ["a", "b"])


def test_curves_carry_their_data_and_the_methods_colours():
    steps, losses = (
        np.arange(4),
        {"clip4clip": np.array([3.0, 2, 1, 0.5]), "dmae": np.array([4.0, 3, 2, 1])},
    )
    left, right = viz.loss_curve(steps, losses, {"CLIP": np.array([1e-5, 1e-4, 1e-4, 1e-6])}).axes
    for line, (name, values) in zip(left.lines, losses.items(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert line.get_color() == viz.METHOD_COLOURS[name]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_yscale()) == ("step", "loss", "log")


def test_recall_over_k_has_bands_chance_and_a_logarithmic_axis():
    x, recalls = [1, 5, 10], {"dmae": np.array([20.0, 50, 70])}
    bands = {"dmae": np.array([[15.0, 45, 65], [25, 55, 75]])}
    (ax,) = viz.recall_curve(
        x, recalls, xlabel="K", ylabel="R@K (%)", bands=bands, chance=[1, 5, 10]
    ).axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), recalls["dmae"])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1, 5, 10])
    assert ax.collections[0].get_datalim(ax.transData).y1 == 75
    assert ax.get_xscale() == "log"
    (ax,) = viz.recall_curve([1, 2], {"val": [10.0, 20]}, xlabel="epoch", ylabel="R@1 (%)").axes
    assert ax.get_xscale() == "linear"


def test_rank_histogram_counts_every_query_once():
    ranks = np.array([1, 1, 2, 5, 6, 10, 11, 50, 51, 400])
    (ax,) = viz.rank_histogram({"dmae": ranks}).axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [20, 20, 20, 20, 20]
    assert sum(heights) == 100
    assert [label.get_text() for label in ax.get_xticklabels()] == list(viz.RANK_BINS)


def test_bars_have_intervals_and_a_chance_line():
    values = {"clip4clip": np.array([80.0, 60]), "dmae": np.array([85.0, 70])}
    intervals = {name: np.stack([v - 5, v + 5], axis=1) for name, v in values.items()}
    options = {"xlabel": "swapped factor", "ylabel": "accuracy (%)"}
    (ax,) = viz.bars(["colour", "motion"], values, intervals=intervals, chance=50, **options).axes
    assert [bar.get_height() for bar in ax.patches] == [80, 60, 85, 70]
    reach = [line.get_segments() for line in ax.collections]
    assert [segment[0, 1] for segment in reach[0]] == [75, 55]
    assert [segment[1, 1] for segment in reach[1]] == [90, 75]
    assert ax.get_legend().get_texts()[0].get_text() in {"chance", "clip4clip"}
    assert any(list(line.get_ydata()) == [50, 50] for line in ax.lines)


def test_histogram_shares_sum_to_one_hundred(rng):
    values = {"positive": rng.normal(0.6, 0.1, 50), "mined": rng.normal(0.5, 0.1, 80)}
    (ax,) = viz.histogram(values, 10, xlabel="cosine", ylabel="pairs (%)").axes
    shares = [stairs.get_data().values.sum() for stairs in ax.patches]
    np.testing.assert_allclose(shares, 100)


def test_forest_plot_fills_only_what_can_be_told():
    intervals = [[1, 5], [0.1, 0.9], [-6, -2]]
    verdicts, told = ["better", "can't tell", "worse"], [True, False, True]
    options = {"told": told, "verdicts": verdicts, "xlabel": "points"}
    figure = viz.forest_plot(["a", "b", "c"], [3, 0.5, -4], intervals, **options)
    (ax,) = figure.axes
    points = ax.lines[1:6:2]
    assert [point.get_xdata()[0] for point in points] == [3, 0.5, -4]
    assert [list(line.get_xdata()) for line in ax.lines[0:6:2]] == intervals
    assert [point.get_markerfacecolor() for point in points] == [viz.RIGHT, "white", viz.WRONG]
    assert set(verdicts) <= texts(figure)


def test_the_embedding_view_joins_each_query_to_its_own_and_its_mined_videos(rng):
    before, after = ((rng.normal(size=(6, 2)), rng.normal(size=(4, 2))) for _ in range(2))
    stories = [(0, 1, [2, 3]), (5, 0, [])]
    figure = viz.embedding({"before": before, "after": after}, stories)
    for ax, (points, videos) in zip(figure.axes, (before, after), strict=True):
        np.testing.assert_array_equal(np.stack(ax.lines[0].get_data()).T, points)
        np.testing.assert_array_equal(np.stack(ax.lines[1].get_data()).T, videos)
        joints = [
            (line.get_color(), line.get_xydata())
            for line in ax.lines
            if len(line.get_xdata()) == 2 and line.get_linestyle() in ("-", ":")
        ]
        expected = [(viz.RIGHT, 0, 1), (viz.WRONG, 0, 2), (viz.WRONG, 0, 3), (viz.RIGHT, 5, 0)]
        assert [colour for colour, _ in joints] == [colour for colour, *_ in expected]
        for (_, line), (_, text, video) in zip(joints, expected, strict=True):
            np.testing.assert_array_equal(line, [points[text], videos[video]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "texts",
        "videos",
        "own video",
        "mined video",
        "query",
    ]


def test_colours_follow_the_method_and_never_repeat_while_there_are_others():
    chosen = viz.colours(["dmae", "dmae_no_negnce", "clip4clip_shapes", "anything"])
    assert chosen["dmae"] == viz.METHOD_COLOURS["dmae"]
    assert chosen["clip4clip_shapes"] == viz.METHOD_COLOURS["clip4clip"]
    assert len(set(chosen.values())) == 4
    assert len(viz.colours([str(i) for i in range(20)])) == 20


def test_save_writes_both_formats_whole_and_nothing_else(tmp_path, frames):
    figure = viz.film_strip(frames)
    png, pdf = viz.save(figure, tmp_path / "figures", "strip")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in pdf.read_bytes()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["strip.pdf", "strip.png"]
    (tmp_path / "figures" / "taken.png").mkdir()
    with pytest.raises(IsADirectoryError):
        viz.save(figure, tmp_path / "figures", "taken")


def test_no_figure_stays_open_and_no_style_leaks(frames):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    viz.film_strip(frames)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
