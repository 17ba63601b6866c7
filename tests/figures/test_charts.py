"""The arrays, positions and texts behind the charts."""

import numpy as np
import pandas as pd
from matplotlib.text import Text

from tvrkit import figures

SIDE = 16


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text)}


def test_curves_have_a_panel_per_quantity_with_bands_and_markers():
    lines = {"highest": np.array([9.0, 2]), "random": np.array([9.0, 7])}
    bands = {name: np.stack([line - 1, line + 1]) for name, line in lines.items()}
    left, right = figures.curves(
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


def test_curves_of_different_things_have_legends_and_labels_of_their_own():
    line = np.array([1.0, 2])
    panels = {
        "gap": ({"m": line}, {"m": [line, line]}),
        "cosine": ({"own": line}, {"own": [line, line]}),
    }
    figure = figures.curves([1, 2], panels, xlabel=["step", "age"])
    assert [ax.get_xlabel() for ax in figure.axes] == ["step", "age"]
    assert [ax.get_legend().get_texts()[0].get_text() for ax in figure.axes] == ["m", "own"]
    assert not figure.legends


def test_curves_carry_their_data_and_the_methods_colours():
    steps, losses = (
        np.arange(4),
        {"clip4clip": np.array([3.0, 2, 1, 0.5]), "dmae": np.array([4.0, 3, 2, 1])},
    )
    left, right = figures.loss_curve(
        steps, losses, {"CLIP": np.array([1e-5, 1e-4, 1e-4, 1e-6])}
    ).axes
    for line, (name, values) in zip(left.lines, losses.items(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert line.get_color() == figures.METHOD_COLOURS[name]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_yscale()) == ("step", "loss", "log")


def test_recall_over_k_has_bands_chance_and_a_logarithmic_axis():
    x, recalls = [1, 5, 10], {"dmae": np.array([20.0, 50, 70])}
    bands = {"dmae": np.array([[15.0, 45, 65], [25, 55, 75]])}
    (ax,) = figures.recall_curve(
        x, recalls, xlabel="K", ylabel="R@K (%)", bands=bands, chance=[1, 5, 10]
    ).axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), recalls["dmae"])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1, 5, 10])
    assert ax.collections[0].get_datalim(ax.transData).y1 == 75
    assert ax.get_xscale() == "log"
    (ax,) = figures.recall_curve([1, 2], {"val": [10.0, 20]}, xlabel="epoch", ylabel="R@1 (%)").axes
    assert ax.get_xscale() == "linear"


def test_rank_histogram_counts_every_query_once():
    ranks = np.array([1, 1, 2, 5, 6, 10, 11, 50, 51, 400])
    (ax,) = figures.rank_histogram({"dmae": ranks}).axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [20, 20, 20, 20, 20]
    assert sum(heights) == 100
    assert [label.get_text() for label in ax.get_xticklabels()] == list(figures.charts.RANK_BINS)


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
