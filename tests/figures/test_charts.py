"""The arrays, positions and texts behind the charts."""

import numpy as np
import pandas as pd
from matplotlib.text import Text

from tvrkit import figures

SIDE = 16


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text)}


def test_curves_have_a_panel_per_quantity_with_bands_and_markers():
    lines = {"clip4clip": np.array([9.0, 2]), "dmae": np.array([9.0, 7])}
    bands = {name: np.stack([line, line - 1, line + 1], axis=1) for name, line in lines.items()}
    panels = {"score": bands, "R@1 (%)": bands}
    figure = figures.curves([0, 50], panels, xlabel="removed (%)")
    left, right = figure.axes
    assert [left.get_ylabel(), right.get_ylabel(), left.get_xlabel()] == [*panels, "removed (%)"]
    for line, name in zip(right.lines, lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), lines[name])
        assert line.get_color() == figures.METHOD_COLOURS[name]
    assert len({line.get_marker() for line in right.lines}) == 2
    assert right.collections[0].get_datalim(right.transData).y1 == 10
    assert right.get_ylim()[0] == 0
    assert len(figure.legends) == 1


def test_curves_of_different_things_have_legends_of_their_own():
    panels = {"gap": {"m": [1.0, 2]}, "cosine": {"own": [1, -2.0]}}
    figure = figures.curves([1, 2], panels, xlabel="")
    assert [ax.get_legend().get_texts()[0].get_text() for ax in figure.axes] == ["m", "own"]
    assert not figure.legends
    assert figure.axes[1].get_ylim()[0] < -2


def test_recall_over_k_has_chance_and_a_logarithmic_axis():
    recalls, options = {"dmae": [20.0, 50, 70]}, {"chance": [1, 5, 10], "log": True}
    (ax,) = figures.curves([1, 5, 10], {"R@K (%)": recalls}, xlabel="K", **options).axes
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1, 5, 10])
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "5", "10"]


def test_bars_without_a_known_interval_are_hollow_and_those_of_height_0_say_so():
    values = {"a": np.array([[2, 1.0, 3], [2, np.nan, np.nan], [0, 0, 1]])}
    (ax,) = figures.bars(["x", "y", "z"], values, xlabel="", ylabel="").axes
    assert [bar.get_facecolor()[:3] == (1, 1, 1) for bar in ax.patches] == [False, True, False]
    assert [text.get_text() for text in ax.texts] == ["", "", "0"]


def test_bars_of_ratios_stand_on_1_or_hang_from_it():
    values = {"a": [(4.0, 2.0, 8.0), (0.5, 0.25, 1.0)]}
    (ax,) = figures.bars(["x", "y"], values, xlabel="", ylabel="", base=1).axes
    assert [(bar.get_y(), bar.get_height()) for bar in ax.patches] == [(1, 3), (1, -0.5)]
    assert ax.get_yscale() == "log"
    (reach,) = [line.get_segments() for line in ax.collections]
    assert [segment[:, 1].tolist() for segment in reach] == [[2, 8], [0.25, 1]]


def test_a_table_becomes_a_line_for_each_name_broken_where_a_row_is_missing():
    columns = ["quantity", "recipe", "epoch", "value", "low", "high"]
    rows = [("mined", "a", 1, 3.0, 2.0, 4.0), ("mined", "a", 2, 5.0, 4.0, 6.0)]
    table = pd.DataFrame([*rows, ("mined", "b", 2, 1.0, 0.0, 2.0)], columns=columns)
    panels = {"mined again": "never measured", "mined": "pairs"}
    figure = figures.interval_curves(table, x="epoch", by="recipe", panels=panels, xlabel="epoch")
    (ax,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(lines["a"], [3, 5])
    np.testing.assert_array_equal(lines["b"], [np.nan, 1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "pairs")


def test_factor_bars_say_which_factors_rest_on_one_family():
    columns = ["factor", "accuracy", "low", "high", "families"]
    rows = [("colour", 90.0, 80.0, 95.0, 3), ("then", 50.0, np.nan, np.nan, 1)]
    (ax,) = figures.factor_bars({"dmae": pd.DataFrame(rows, columns=columns)}).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["colour", "then\n1 family"]
    assert [bar.get_height() for bar in ax.patches] == [90, 50]


def test_bars_have_intervals_and_a_chance_line():
    values = {"clip4clip": np.array([80.0, 60]), "dmae": np.array([85.0, 70])}
    values = {name: np.stack([v, v - 5, v + 5], axis=1) for name, v in values.items()}
    options = {"xlabel": "swapped factor", "ylabel": "accuracy (%)"}
    (ax,) = figures.bars(["colour", "motion"], values, chance=[50, 40], **options).axes
    assert [bar.get_height() for bar in ax.patches] == [80, 60, 85, 70]
    reach = [line.get_segments() for line in ax.collections]
    assert [segment[0, 1] for segment in reach[0]] == [75, 55]
    assert [segment[1, 1] for segment in reach[1]] == [90, 75]
    assert ax.get_legend().get_texts()[0].get_text() in {"chance", "clip4clip"}
    assert [list(line[:, 1]) for line in reach[-1]] == [[50, 50], [40, 40]]


def test_histogram_shares_sum_to_one_hundred(rng):
    values = {"positive": rng.normal(0.6, 0.1, 50), "mined": rng.normal(0.5, 0.1, 80)}
    (ax,) = figures.histogram(values, 10, xlabel="cosine", ylabel="pairs (%)").axes
    shares = [stairs.get_data().values.sum() for stairs in ax.patches]
    np.testing.assert_allclose(shares, 100)


def test_forest_plot_fills_only_what_can_be_told_of_recipes():
    rows = {
        "difference": [3, 0.5, -4],
        "low": [1, 0.1, -6],
        "high": [5, 0.9, -2],
        "weights": ["better", "can't tell", "worse"],
        "recipe": ["better", "can't tell", "can't tell"],
        "holm_weights": [0.001, 0.4, 0.02],
        "holm_recipe": [0.01, 0.6, np.nan],
    }
    tests = [pd.DataFrame(rows, list("abc")).assign(metric=metric) for metric in ("R@1", "rsum")]
    figure = figures.forest_plot(pd.concat(tests), xlabel="points")
    assert [ax.get_xlabel() for ax in figure.axes] == ["R@1", "rsum"]
    for ax in figure.axes:
        points = ax.lines[1:6:2]
        assert [point.get_xdata()[0] for point in points] == [3, 0.5, -4]
        ends = [list(line.get_xdata()) for line in ax.lines[0:6:2]]
        assert ends == [[1, 5], [0.1, 0.9], [-6, -2]]
        faces = [point.get_markerfacecolor() for point in points]
        assert faces == [figures.RIGHT, "white", "white"]
        assert points[2].get_color() == figures.WRONG
    assert {"0.001 / 0.010", "0.020"} <= texts(figure)


def test_the_embedding_view_joins_each_query_to_its_own_and_its_mined_videos(rng):
    before, after = ((rng.normal(size=(6, 2)), rng.normal(size=(4, 2))) for _ in range(2))
    stories = [(0, 1, [2, 3]), (5, 0, [])]
    figure = figures.embedding({"before": before, "after": after}, stories)
    for ax, (points, videos) in zip(figure.axes, (before, after), strict=True):
        np.testing.assert_array_equal(np.stack(ax.lines[0].get_data()).T, points)
        np.testing.assert_array_equal(np.stack(ax.lines[1].get_data()).T, videos)
        joints = [
            (line.get_color(), line.get_xydata())
            for line in ax.lines
            if len(line.get_xdata()) == 2 and line.get_linestyle() in ("-", ":")
        ]
        expected = [
            (figures.RIGHT, 0, 1),
            (figures.WRONG, 0, 2),
            (figures.WRONG, 0, 3),
            (figures.RIGHT, 5, 0),
        ]
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
