"""Areas, means and intervals that judge pictures, and how a run keeps them."""

import json

import numpy as np
import pytest

from tvrkit import files, inspection
from tvrkit.inspection.diagnostics import load


def test_auc_counts_the_pairs_that_are_in_order_and_half_the_tied_ones():
    rng = np.random.default_rng(0)
    for levels in (3, 1000):
        scores, truth = rng.integers(levels, size=50), rng.random(50) < 0.3
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
        assert inspection.auc(scores, truth) == pytest.approx(np.mean(pairs))
    assert inspection.auc([0.1, 0.9], [False, True]) == 1
    assert np.isnan(inspection.auc([0.1, 0.9], [True, True]))


def test_mean_interval_covers_the_mean_of_its_distribution_about_95_times_of_100():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        mean, low, high = inspection.mean_interval(rng.normal(5, 2, 60))
        assert low <= mean <= high
        hits += low <= 5 <= high
    assert 88 <= hits <= 100


def test_mean_interval_leaves_nan_out_and_is_not_known_from_a_single_value():
    assert inspection.mean_interval([1, np.nan, 1]) == (1, 1, 1)
    assert inspection.mean_interval([1, np.nan, 3])[0] == 2
    for values, clusters in (([1, np.nan], None), ([np.nan] * 2, None), ([1, 2, 3], list("aaa"))):
        assert np.isnan(inspection.mean_interval(values, clusters)).all()


def test_values_of_one_cluster_share_its_luck():
    values, clusters = np.repeat([0.0, 1, 1, 0, 1], 40), np.repeat(list("abcde"), 40)
    alone, together = inspection.mean_interval(values), inspection.mean_interval(values, clusters)
    assert alone[0] == together[0] == pytest.approx(0.6)
    assert together[2] - together[1] > 3 * (alone[2] - alone[1])


def test_diagnostics_keep_order_and_write_unknown_numbers_as_null(tmp_path):
    numbers = inspection.Diagnostics()
    numbers.add("word AUC", [1.0, 1.0])
    numbers.add("frame AUC", [np.nan])
    numbers["mined"] = (2.0, 1.0, 3.0)
    assert numbers.table("AUC").index.tolist() == ["word AUC", "frame AUC"]
    assert inspection.format_interval(numbers["mined"], "{:.1f}") == "2.0 [1.0, 3.0]"
    assert inspection.format_interval(numbers["frame AUC"]) == "unknown"
    numbers.save(tmp_path / "diagnostics_05.json")
    assert json.loads((tmp_path / "diagnostics_05.json").read_text()) == {
        "word AUC": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "frame AUC": {"mean": None, "low": None, "high": None},
        "mined": {"mean": 2.0, "low": 1.0, "high": 3.0},
    }


def test_what_was_saved_is_loaded_by_name_whatever_the_order(tmp_path):
    numbers = inspection.Diagnostics(area=(0.5, 0.25, 0.75), unknown=(np.nan,) * 3)
    numbers.save(tmp_path / "one.json")
    saved = json.loads((tmp_path / "one.json").read_text())
    files.write_json(
        tmp_path / "one.json", {k: dict(reversed(v.items())) for k, v in saved.items()}
    )
    found = load(tmp_path / "one.json")
    np.testing.assert_array_equal(found["area"], [0.5, 0.25, 0.75])
    assert np.isnan(found["unknown"]).all()
