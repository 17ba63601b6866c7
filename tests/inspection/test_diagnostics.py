"""Areas, means and intervals that judge pictures, and how a run keeps them."""

import json

import numpy as np
import pytest

from tvrkit import files, inspection
from tvrkit.training.card import read_diagnostics


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
    files.write_json(tmp_path / "run.json", {})
    numbers.save(tmp_path / "diagnostics_05.json")
    assert json.loads((tmp_path / "diagnostics_05.json").read_text())["numbers"] == {
        "word AUC": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "frame AUC": {"mean": None, "low": None, "high": None},
        "mined": {"mean": 2.0, "low": 1.0, "high": 3.0},
    }


def test_what_was_saved_is_loaded_by_name_whatever_the_order(tmp_path):
    numbers = inspection.Diagnostics(area=(0.5, 0.25, 0.75), unknown=(np.nan,) * 3)
    files.write_json(tmp_path / "run.json", {})
    path = tmp_path / "one.json"
    numbers.save(path)
    saved = files.read_json(path)
    turned = {k: dict(reversed(v.items())) for k, v in saved["numbers"].items()}
    for there in (saved, saved | {"numbers": turned}):
        files.write_json(path, there)
        assert list(read_diagnostics(path)) == ["area", "unknown"]
        np.testing.assert_array_equal(read_diagnostics(path)["area"], [0.5, 0.25, 0.75])


@pytest.mark.parametrize("change", ["number", "title", "seal", "run"])
def test_what_was_changed_since_or_lies_beside_another_run_is_told(tmp_path, change):
    files.write_json(tmp_path / "run.json", {"seed": 0})
    path = tmp_path / "diagnostics_04.json"
    inspection.Diagnostics(area=(0.5, 0.25, 0.75)).save(path)
    saved = files.read_json(path)
    if change == "number":
        saved["numbers"]["area"]["mean"] = 0.75
    elif change == "title":
        saved["numbers"]["other"] = saved["numbers"].pop("area")
    elif change == "seal":
        del saved["sha256"]
    else:
        files.write_json(tmp_path / "run.json", {"seed": 1})
    files.write_json(path, saved)
    with pytest.raises(ValueError, match=r"^diagnostics_04.json: not as it was saved beside this"):
        read_diagnostics(path)
