"""Intervals, paired tests and verdicts: naive loops, scipy, planted differences and simulated error
rates."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tvrkit.evaluation import statistics
from tvrkit.evaluation.ranks import retrieval_metrics
from tvrkit.evaluation.statistics import (
    bootstrap_metrics,
    holm,
    interval,
    paired_test,
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


def hits_of(*runs: np.ndarray) -> list[np.ndarray]:
    return [(ranks == 1).astype(int) for ranks in runs]


def compared(a, b, **options) -> dict:
    """One seed a side, a query a cluster."""
    return paired_test(*hits_of(a, b), np.ones(len(a)), point=100 / len(a), **options)


@pytest.mark.parametrize("seed", range(5))
def test_planted_one_point_at_500_queries_cannot_be_told(seed):
    found = compared(*planted(1, seed))
    assert (found["effect"], found["difference"]) == (5, pytest.approx(1.0))
    assert found["low"] < 0 < found["high"]
    assert found["p_weights"] > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_planted_ten_points_at_500_queries_are_found(seed):
    better, base = planted(10, seed)
    found, back = compared(better, base), compared(base, better)
    assert (found["effect"], found["difference"]) == (50, pytest.approx(10.0))
    assert back["difference"] == -found["difference"]
    assert found["p_weights"] == back["p_weights"] < 0.001
    assert found["low"] > 0


def test_identical_runs_cannot_be_told():
    hits = np.arange(49) % 2
    found = paired_test(hits, hits, np.ones(49))
    assert (found["low"], found["high"], found["p_weights"]) == (0.0, 0.0, 1.0)
    assert np.isnan(found["p_recipe"])
    assert paired_test([hits, hits], [hits, hits], np.ones(49))["p_recipe"] == 1.0


def test_false_positive_rate_is_about_alpha():
    rng, owner = np.random.default_rng(4), np.repeat(np.arange(100), 5)
    raised = {"videos": 0, "captions": 0}
    for _ in range(600):
        luck = rng.normal(size=(2, 100))[:, owner]  # each run is lucky on videos of its own
        a, b = (rng.normal(size=(2, 500)) + 2 * luck) > 0
        gain = a.astype(int) - b
        raised["videos"] += sign_flip_test(np.bincount(owner, gain).astype(int)) < 0.05
        raised["captions"] += sign_flip_test(gain) < 0.05
    assert 0.025 <= raised["videos"] / 600 <= 0.08
    assert (
        raised["captions"] / 600 > 0.12
    )  # what comes of taking captions of one video as independent


@pytest.mark.parametrize("pairs", range(1, 11))
def test_the_sign_flip_test_is_the_enumeration_of_all_swaps(pairs):
    rng = np.random.default_rng(pairs)
    signs = np.array(np.meshgrid(*[[-1, 1]] * pairs)).reshape(pairs, -1)
    for factor in (1, 1, 3, 500):
        gain = factor * rng.integers(-4, 5, pairs)
        exact = (np.abs(gain @ signs) >= abs(gain.sum())).mean()
        assert sign_flip_test(gain) == pytest.approx(exact, abs=1e-12)


def test_the_sign_flip_test_of_many_pairs_is_scipys_and_mcnemars():
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 6, (2, 80))
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        vectorized=True,
        rng=0,
    ).pvalue
    assert sign_flip_test(a - b) == pytest.approx(theirs, abs=0.02)
    mcnemar = stats.binomtest(23, 32).pvalue
    assert sign_flip_test([1] * 23 + [0] * 40 + [-1] * 9) == pytest.approx(mcnemar, abs=1e-12)


def test_sums_above_the_grid_are_rounded_to_it(monkeypatch):
    gain = np.random.default_rng(7).integers(-(10**5), 10**5, 40)
    fine = sign_flip_test(gain)
    monkeypatch.setattr(statistics, "GRID", 2**12)
    assert sign_flip_test(gain) == pytest.approx(fine, abs=0.01)


def test_clusters_widen_the_interval_of_a_difference():
    rng, owner = np.random.default_rng(6), np.repeat(np.arange(50), 10)
    a, b = (rng.random(50) < share for share in (0.6, 0.5))
    alone, together = (
        paired_test(*sides, sizes)
        for sides, sizes in (
            ((a[owner].astype(int), b[owner].astype(int)), np.ones(500)),
            ((10 * a.astype(int), 10 * b.astype(int)), np.full(50, 10)),
        )
    )
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])
    assert together["p_weights"] > alone["p_weights"]
    assert together["difference"] == alone["difference"]


def test_the_interval_over_videos_is_the_bootstraps():
    rng = np.random.default_rng(8)
    sizes = rng.integers(1, 6, 200)
    a, b = rng.binomial(sizes, 0.5), rng.binomial(sizes, 0.42)
    found = paired_test(a, b, sizes, point=100 / sizes.sum())
    drawn = rng.multinomial(200, np.full(200, 1 / 200), size=4000)
    bounds = interval(100 * (drawn @ (a - b)) / (drawn @ sizes))
    assert [found["low"], found["high"]] == pytest.approx(bounds, abs=0.5)


def test_a_recipes_error_has_the_spread_of_both_sides_seeds_and_of_the_videos():
    a, b = np.array([[9, 7, 8], [5, 6, 4], [7, 7, 4]]), np.array([[3, 4, 2], [4, 4, 4]])
    found = paired_test(a, b, [10, 10, 10], point=2.0)
    gain = a.mean(0) - b.mean(0)
    parts = [
        a.sum(1).var(ddof=1) / 3,
        b.sum(1).var(ddof=1) / 2,
        3 / 2 * ((gain - gain.mean()) ** 2).sum(),
    ]
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1 + parts[2] ** 2 / 2)
    error = 2 * np.sqrt(sum(parts))
    assert found["difference"] == pytest.approx(2 * gain.sum())
    assert found["p_recipe"] == pytest.approx(2 * stats.t.sf(2 * gain.sum() / error, degrees))
    reach = stats.t.ppf(0.975, degrees) * error
    assert found["high"] - found["difference"] == pytest.approx(reach)
    assert found["p_weights"] == sign_flip_test(2 * a.sum(0) - 3 * b.sum(0))


def test_equal_videos_leave_welchs_test_of_the_seeds():
    """Where no video says anything of its own, only the seeds do."""
    a, b = ([[x] * 4 for x in side] for side in ((50, 51, 52), (40, 41, 43)))
    theirs = stats.ttest_ind(*(np.sum(side, 1) for side in (a, b)), equal_var=False)
    assert paired_test(a, b, np.full(4, 60))["p_recipe"] == pytest.approx(theirs.pvalue)


def test_holm_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([0.04]).tolist() == [0.04]


def test_verdicts_are_adjusted_over_all_rows_that_were_tested():
    columns = {
        "difference": [1.0, np.nan, -2.0, 3.0],
        "p_weights": [0.02, np.nan, 0.001, 0.03],
        "p_recipe": [0.02, np.nan, 0.03, np.nan],
    }
    judged = statistics.with_verdicts(pd.DataFrame(columns))
    assert judged["holm_weights"].tolist()[::2] == pytest.approx([0.04, 0.003])
    assert judged["holm_recipe"].dropna().tolist() == [0.04, 0.04]
    assert judged["weights"].tolist()[::2] == ["better", "worse"]
    assert judged["recipe"].tolist()[2:] == ["worse", "one seed"]
    assert pd.isna(judged.loc[1, ["weights", "recipe", "holm_weights"]]).all()
    untested = pd.DataFrame({"claim": [1]})
    assert statistics.with_verdicts(untested) is untested


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


def test_verdicts_stand_by_row_also_where_rows_share_a_name():
    table = pd.DataFrame(
        {
            "difference": [5.0, np.nan, -3.0],
            "p_weights": [0.001, np.nan, 0.04],
            "p_recipe": [0.2, np.nan, np.nan],
        },
        index=["dmae", "dmae", "dmae"],
    )
    told = statistics.with_verdicts(table)
    assert told.shape == (3, 7)
    np.testing.assert_allclose(told["holm_weights"], [0.002, np.nan, 0.04])
    np.testing.assert_allclose(told["holm_recipe"], [0.2, np.nan, np.nan])
    assert told["weights"].isna().tolist() == [False, True, False]
