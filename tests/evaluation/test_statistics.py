"""Intervals, paired tests and verdicts: naive loops, scipy, planted differences and simulated error
rates."""

import numpy as np
import pytest
from scipy import stats

from tvrkit.evaluation import statistics
from tvrkit.evaluation.ranks import retrieval_metrics
from tvrkit.evaluation.statistics import (
    bootstrap_metrics,
    compare_ranks,
    compare_seeds,
    holm,
    interval,
    sign_flip_test,
)


def ranks_with(hits: int, queries: int, rng) -> np.ndarray:
    """Ranks of which exactly `hits` are 1."""
    return rng.permutation(np.where(np.arange(queries) < hits, 1, rng.integers(2, 60, queries)))


def planted(points: int, seed: int, queries: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Two runs that differ by exactly `points` of R@1, and disagree on a tenth of the queries
    besides."""
    rng = np.random.default_rng(seed)
    base = ranks_with(queries * 45 // 100, queries, rng)
    better, (hits, misses) = (
        base.copy(),
        (rng.permutation(np.flatnonzero(found)) for found in (base == 1, base > 1)),
    )
    swapped = queries // 20
    better[hits[:swapped]] = 2
    better[misses[: swapped + queries * points // 100]] = 1
    return better, base


@pytest.mark.parametrize("chunk", [7, 2**22])
def test_bootstrap_equals_naive_resampling(chunk, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    ranks, labels = rng.integers(1, 70, 41), np.append(np.arange(12), rng.integers(0, 12, 29))
    found = bootstrap_metrics(ranks, labels, resamples=50, seed=3)
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=50)
    for sample, drawn in enumerate(draws):
        again = np.concatenate(
            [np.tile(ranks[labels == label], times) for label, times in enumerate(drawn)]
        )
        expected = retrieval_metrics(again)
        assert {key: values[sample] for key, values in found.items()} == pytest.approx(expected)


def test_bootstrap_of_half_ranks_and_string_labels():
    ranks = np.array([1.5, 2.0, 2.5, 8.0])
    named = bootstrap_metrics(ranks, ["b", "a", "b", "a"], resamples=20)
    numbered = bootstrap_metrics(ranks, [1, 0, 1, 0], resamples=20)
    assert all(np.array_equal(named[key], numbered[key]) for key in numbered)
    assert not bootstrap_metrics(ranks, resamples=20)["R@1"].any()
    with pytest.raises(ValueError, match="clusters of 4 queries, got shape \\(3,\\)"):
        bootstrap_metrics(ranks, [0, 1, 2])


def test_one_seed_draws_the_same_videos_for_both_directions():
    rng = np.random.default_rng(1)
    v2t = rng.integers(1, 30, 60)
    owner = np.repeat(np.arange(60), 3)
    by_caption, by_video = bootstrap_metrics(v2t[owner], owner), bootstrap_metrics(v2t)
    for key in ("R@1", "R@5", "R@10", "MnR"):  # the same ranks three times over: the same samples
        np.testing.assert_allclose(by_caption[key], by_video[key])


def test_interval_covers_about_as_often_as_it_says():
    rng, truth, covered = np.random.default_rng(2), 45.0, 0
    for trial in range(300):
        low, high = interval(
            bootstrap_metrics(rng.geometric(truth / 100, 250), resamples=300, seed=trial)["R@1"]
        )
        covered += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_captions_that_share_a_video_need_clusters():
    rng, truth, covered = np.random.default_rng(3), 50.0, {"videos": 0, "captions": 0}
    owner = np.repeat(np.arange(100), 10)
    for trial in range(150):
        ranks = 1 + (rng.random(1000) > rng.beta(0.5, 0.5, 100)[owner])  # easy videos and hard ones
        for name, clusters in (("videos", owner), ("captions", None)):
            low, high = interval(
                bootstrap_metrics(ranks, clusters, resamples=200, seed=trial)["R@1"]
            )
            covered[name] += low <= truth <= high
    assert covered["videos"] / 150 >= 0.88
    assert covered["captions"] / 150 <= 0.75


@pytest.mark.parametrize("seed", range(5))
def test_planted_one_point_at_500_queries_cannot_be_told(seed):
    found = compare_ranks(*planted(1, seed))
    assert found["verdict"] == "can't tell"
    assert (found["effect"], found["queries"], found["difference"]) == (5, 500, pytest.approx(1.0))
    assert found["low"] < 0 < found["high"]
    assert found["p_value"] > 0.05
    assert found["p_mcnemar"] > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_planted_ten_points_at_500_queries_are_found(seed):
    better, base = planted(10, seed)
    found = compare_ranks(better, base)
    assert (found["verdict"], compare_ranks(base, better)["verdict"]) == ("better", "worse")
    assert (found["effect"], found["difference"]) == (50, pytest.approx(10.0))
    assert (found["wins"], found["losses"]) == (75, 25)
    assert found["low"] > 0
    assert found["p_value"] < 0.001
    assert found["p_mcnemar"] < 0.001


def test_identical_runs_cannot_be_told():
    ranks = np.arange(1, 50)
    found = compare_ranks(ranks, ranks)
    assert (found["verdict"], found["low"], found["high"]) == ("can't tell", 0.0, 0.0)
    assert (found["p_value"], found["p_mcnemar"]) == (1.0, 1.0)


def test_false_positive_rate_is_about_alpha():
    rng, owner = np.random.default_rng(4), np.repeat(np.arange(100), 5)
    raised = {"videos": 0, "captions": 0}
    for trial in range(600):
        luck = rng.normal(size=(2, 100))[:, owner]  # each run is lucky on videos of its own
        a, b = (rng.normal(size=(2, 500)) + 2 * luck) > 0
        gain = a.astype(int) - b
        raised["videos"] += (
            sign_flip_test(np.bincount(owner, gain).astype(int), resamples=999, seed=trial) < 0.05
        )
        raised["captions"] += sign_flip_test(gain, resamples=999, seed=trial) < 0.05
    assert 0.025 <= raised["videos"] / 600 <= 0.08
    assert (
        raised["captions"] / 600 > 0.12
    )  # what comes of taking captions of one video as independent


def test_sign_flip_test_equals_scipy_and_enumeration():
    rng = np.random.default_rng(5)
    gain = rng.integers(-3, 4, 10)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    exact = (np.abs(gain @ signs) >= abs(gain.sum())).mean()
    assert sign_flip_test(gain, resamples=40_000) == pytest.approx(exact, abs=0.01)
    a, b = rng.integers(0, 6, (2, 80))
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        vectorized=True,
        rng=0,
    ).pvalue
    assert sign_flip_test(a - b, resamples=40_000) == pytest.approx(theirs, abs=0.02)


def test_mcnemar_is_the_permutation_test_where_queries_are_independent():
    found = compare_ranks(*planted(3, 0), resamples=40_000)
    assert found["p_value"] == pytest.approx(found["p_mcnemar"], abs=0.01)


def test_clusters_widen_the_interval_of_a_difference():
    rng, owner = np.random.default_rng(6), np.repeat(np.arange(50), 10)
    a = 1 + (rng.random(50)[owner] > 0.6)
    b = 1 + (rng.random(50)[owner] > 0.5)
    alone, together = compare_ranks(a, b), compare_ranks(a, b, owner)
    widths = [each["high"] - each["low"] for each in (alone, together)]
    assert widths[1] > 2 * widths[0]
    assert together["p_value"] > alone["p_value"]
    assert together["difference"] == alone["difference"]


def test_compare_ranks_names_what_is_wrong():
    with pytest.raises(ValueError, match="same queries, got shapes \\(3,\\) and \\(4,\\)"):
        compare_ranks(np.ones(3), np.ones(4))
    with pytest.raises(
        ValueError, match=r"unknown metric 'MnR': expected one of R@1, R@10, R@5, R@50"
    ):
        compare_ranks(np.ones(3), np.ones(3), metric="MnR")


def test_other_recalls_count_their_own_hits():
    a, b = np.array([3, 9, 12, 1] * 20), np.array([6, 9, 4, 1] * 20)
    assert compare_ranks(a, b, metric="R@5")["effect"] == 0
    assert compare_ranks(a, b, metric="R@10")["effect"] == -20
    assert compare_ranks(a, b, metric="R@50")["wins"] == 0


def test_holm_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([0.04]).tolist() == [0.04]


def test_seeds():
    assert statistics.mean_and_deviation([44.0, 46.0, 48.0]) == (46.0, 2.0)
    assert np.isnan(statistics.mean_and_deviation([44.0])[1])
    clear, close = (
        compare_seeds([50, 51, 52], [40, 41, 42]),
        compare_seeds([44, 47, 45], [46, 43, 44]),
    )
    assert (clear["verdict"], close["verdict"]) == ("better", "can't tell")
    assert compare_seeds([40, 41, 42], [50, 51, 52])["verdict"] == "worse"
    assert clear["low"] < clear["difference"] == 10 < clear["high"]
    assert clear["p_value"] == stats.ttest_ind([50, 51, 52], [40, 41, 42], equal_var=False).pvalue
    with pytest.raises(ValueError, match="two seeds or more on each side, got 1 and 3"):
        compare_seeds([1], [1, 2, 3])


def test_ratio_interval_is_the_ratio_of_sums_and_resamples_clusters():
    over, under, videos = (
        np.array([1, 0, 3, 2, 0]),
        np.array([2, 1, 3, 4, 0]),
        np.array([0, 0, 1, 2, 2]),
    )
    value, low, high = statistics.ratio_interval(over, under, videos)
    assert value == 6 / 10
    rng, draws = np.random.default_rng(0), []
    for _ in range(4000):
        picked = rng.integers(0, 3, 3)
        rows = np.concatenate([np.flatnonzero(videos == video) for video in picked])
        draws.append(over[rows].sum() / under[rows].sum())
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=0.02)
    twice = statistics.ratio_interval(np.tile(over, 2), np.tile(under, 2), np.tile(videos, 2))
    assert twice == pytest.approx((value, low, high))  # the same captions again tell nothing new
    assert np.isnan(statistics.ratio_interval([0, 0], [0, 0])).all()
    assert statistics.ratio_interval([0, 3], [0, 3])[1:] == (
        1,
        1,
    )  # draws of the empty query alone have no ratio
