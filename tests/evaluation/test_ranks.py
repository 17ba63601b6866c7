"""Ranks and what is read off them, against naive loops, golden numbers and torchmetrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

import tvrkit  # noqa: F401  torchmetrics imports torchvision, which may need the package's declarations first
from tests.evaluation.whole import first_hit, max_over_captions, own_captions
from tvrkit.evaluation import ranks as metrics
from tvrkit.evaluation.ranks import (
    Rows,
    count_rivals,
    count_video_rivals,
    ndcg,
    retrieval_metrics,
    retrieval_ranks,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "metrics.safetensors")
CAPTIONS = np.array([2, 0, 1, 1, 3, 0, 1])  # video of each caption, not grouped


def naive_rank(row, own, ties):
    best = max(row[j] for j in own)
    others = [row[j] for j in range(len(row)) if j not in own]
    better, tied = sum(s > best for s in others), sum(s == best for s in others)
    return 1 + better + {"pessimistic": tied, "optimistic": 0, "mean": tied / 2}[ties]


@pytest.fixture
def tied_scores():
    return np.random.default_rng(0).integers(0, 6, (40, 17)).astype(np.float32)


@pytest.fixture
def untied_scores():
    return np.random.default_rng(1).normal(size=(30, 23)).astype(np.float32)


@pytest.mark.parametrize("ties", sorted(metrics.TIES))
@pytest.mark.parametrize("chunk", [1, 50, 2**22])
def test_ranks_of_several_matches_equal_naive_loops(tied_scores, ties, chunk, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    positives = np.random.default_rng(2).random(tied_scores.shape) < 0.15
    positives[np.arange(40), np.arange(40) % 17] = True
    expected = [
        naive_rank(row, np.flatnonzero(own), ties)
        for row, own in zip(tied_scores, positives, strict=True)
    ]
    assert retrieval_ranks(tied_scores, positives, ties=ties).tolist() == expected
    groups = [np.flatnonzero(own) for own in positives]
    assert retrieval_ranks(tied_scores, groups, ties=ties).tolist() == expected
    twice = [
        np.repeat(group, 2)[::-1] for group in groups
    ]  # neither order nor repetition means anything
    assert retrieval_ranks(tied_scores, twice, ties=ties).tolist() == expected
    assert (
        retrieval_ranks(torch.tensor(tied_scores), torch.tensor(positives), ties=ties).tolist()
        == expected
    )


def test_ranks_of_one_match_each():
    scores = np.array([[0.9, 0.9, 0.1], [0.2, 0.8, 0.1], [0.3, 0.2, 0.1]])
    assert retrieval_ranks(scores).tolist() == [2, 1, 3]
    assert retrieval_ranks(scores, ties="optimistic").tolist() == [1, 1, 3]
    assert retrieval_ranks(scores, ties="mean").tolist() == [1.5, 1, 3]
    assert retrieval_ranks(scores, np.array([2, 2, 0])).tolist() == [3, 3, 1]
    assert retrieval_ranks(scores).dtype == np.int64


def test_ranks_do_not_depend_on_order_and_the_mean_lies_between_the_bounds(tied_scores):
    rng = np.random.default_rng(3)
    own = rng.integers(0, 17, 40)
    rows, columns = rng.permutation(40), rng.permutation(17)
    shuffled = retrieval_ranks(tied_scores[rows][:, columns], np.argsort(columns)[own[rows]])
    assert shuffled.tolist() == retrieval_ranks(tied_scores, own)[rows].tolist()
    low, middle, high = (
        retrieval_ranks(tied_scores, own, ties=t) for t in ("optimistic", "mean", "pessimistic")
    )
    assert (low < high).any()
    assert np.array_equal(middle, (low + high) / 2)
    assert high.max() <= 17


def test_a_constant_matrix_counts_each_query_once_and_earns_nothing():
    ranks = retrieval_ranks(np.full((10, 10), 0.3))
    assert ranks.tolist() == [10] * 10
    assert retrieval_metrics(ranks)["R@1"] == 0
    assert retrieval_metrics(retrieval_ranks(np.full((10, 10), 0.3), ties="mean"))["MnR"] == 5.5


def test_half_precision_is_compared_in_float32():
    scores = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    assert retrieval_ranks(scores).tolist() == [2, 2]
    assert retrieval_ranks(np.array([[1.0, 1.0 + 1e-12], [0.0, 1.0]])).tolist() == [
        2,
        1,
    ]  # a tie in float32


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_nan_is_refused_by_its_first_query(untied_scores, chunk, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    untied_scores[[20, 7], [0, 22]] = np.nan
    with pytest.raises(ValueError, match="query 7 holds NaN"):
        retrieval_ranks(untied_scores, np.arange(30) % 23)
    untied_scores[7, 7 % 23] = np.nan
    with pytest.raises(ValueError, match="query 7 holds NaN"):
        retrieval_ranks(untied_scores, np.arange(30) % 23)


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        (None, "2 queries, 3 candidates: not one-to-one"),
        (np.array([0, 3]), r"0\.\.2, got 0\.\.3"),
        (np.array([0, -1]), r"0\.\.2, got -1\.\.0"),
        (np.array([0]), "positives of 2 queries, got 1"),
        (np.ones((2, 2), bool), r"shape \(2, 3\), got \(2, 2\)"),
        (np.array([[True, False, True], [False] * 3]), "query 1 has no match"),
        ([np.array([1]), np.array([], int)], "query 1 has no match"),
    ],
)
def test_positives_that_do_not_fit(positives, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(np.zeros((2, 3)), positives)


def test_unknown_tie_rule_and_bad_matrices():
    with pytest.raises(ValueError, match="'random': expected one of mean, optimistic, pessimistic"):
        retrieval_ranks(np.eye(3), ties="random")
    for bad in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="got shape"):
            retrieval_ranks(bad)


def test_metrics_of_the_worked_example():
    expected = {"R@1": 25, "R@5": 50, "R@10": 75, "R@50": 100, "MdR": 4.5, "MnR": 10}
    assert retrieval_metrics([1, 2, 7, 30]) == expected
    assert retrieval_metrics(Tensor([1, 2, 7, 30])) == expected
    assert retrieval_metrics(np.array([1.5]))["R@1"] == 0
    for bad in ([], [0, 1]):
        with pytest.raises(ValueError, match="none below 1"):
            retrieval_metrics(bad)


@pytest.mark.parametrize("name", ["rand20", "rand60"])
@pytest.mark.parametrize("way", ["t2v", "v2t"])
def test_golden_one_to_one(name, way):
    scores = GOLDEN[f"{name}.S"] if way == "t2v" else GOLDEN[f"{name}.S"].T
    ranks = retrieval_ranks(scores)
    assert ranks.tolist() == (GOLDEN[f"{name}.{way}.glscl_cols"] + 1).tolist()
    found = list(retrieval_metrics(ranks).values())
    np.testing.assert_allclose(found, GOLDEN[f"{name}.{way}.glscl"], rtol=1e-6)
    np.testing.assert_allclose(found[:3] + found[4:], GOLDEN[f"{name}.{way}.hmmc"], rtol=1e-6)


@pytest.mark.parametrize("name", ["multi30x10", "multi7x4"])
def test_golden_multi_caption(name):
    scores = GOLDEN[f"{name}.S"]
    owner = np.repeat(np.arange(scores.shape[1]), GOLDEN[f"{name}.captions_per_video"])
    ranks = retrieval_ranks(scores, owner)
    t2v = retrieval_metrics(ranks)
    recalls, (median, mean) = GOLDEN[f"{name}.t2v.hmmc"][:3], GOLDEN[f"{name}.t2v.hmmc"][3:5]
    np.testing.assert_allclose(
        [t2v["R@1"], t2v["R@5"], t2v["R@10"], t2v["MnR"]], [*recalls, mean], rtol=1e-6
    )
    assert (
        np.sort(ranks)[(len(ranks) - 1) // 2] == median
    )  # the released code takes the lower median
    v2t = retrieval_metrics(count_video_rivals(scores, owner)[0].ranks("pessimistic"))
    np.testing.assert_allclose(list(v2t.values()), GOLDEN[f"{name}.v2t.glscl"], rtol=1e-6)


@pytest.mark.parametrize("name", ["constant10", "quantised20", "one_tie3"])
def test_ties_add_no_query_as_they_do_in_the_released_code(name):
    scores = GOLDEN[f"{name}.S"]
    assert len(GOLDEN[f"{name}.t2v.glscl_cols"]) > len(scores)
    assert len(retrieval_ranks(scores)) == len(scores)


@pytest.mark.parametrize("ties", sorted(metrics.TIES))
@pytest.mark.parametrize("chunk", [1, 9, 2**22])
def test_both_conventions_equal_naive_loops(ties, chunk, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    scores = np.random.default_rng(4).integers(0, 5, (7, 4)).astype(np.float32)
    grouped, first = (rivals.ranks(ties) for rivals in count_video_rivals(scores, CAPTIONS))
    own = own_captions(CAPTIONS)
    groups = [[max(row[captions]) for captions in own] for row in scores.T]
    expected = [naive_rank(row, [video], ties) for video, row in enumerate(groups)]
    assert grouped.tolist() == expected
    expected = [naive_rank(row, own[video], ties) for video, row in enumerate(scores.T)]
    assert first.tolist() == expected


@pytest.mark.parametrize("levels", [3, 40, 10**6])
@pytest.mark.parametrize("chunk", [1, 500, 5000])
def test_blocks_of_any_size_count_what_the_whole_matrix_does(levels, chunk, monkeypatch):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (230, 41)).astype(np.float32)
    owner = rng.permutation(np.append(np.arange(41), rng.integers(0, 41, 189)))
    plain = max_over_captions(scores, owner), first_hit(scores, owner)
    whole = count_rivals(scores, owner)
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    held = []

    def make(rows):
        held.append(scores[rows].size)
        return scores[rows]

    rows = Rows(scores.shape, make)
    for found, expected in zip(count_rivals(rows, owner), whole, strict=True):
        assert found.tolist() == expected.tolist()
    for found, expected in zip(count_video_rivals(rows, owner), plain, strict=True):
        assert found.ranks("pessimistic").tolist() == expected.tolist()
    most = np.bincount(owner).max() * 41  # a video's captions are read together
    assert max(held) <= max(chunk, most)


def test_conventions_agree_one_to_one_and_refuse_videos_without_captions(untied_scores):
    square, order = untied_scores[:23], np.random.default_rng(5).permutation(23)
    expected = retrieval_ranks(square.T, np.argsort(order)).tolist()
    for found in count_video_rivals(square, order):
        assert found.ranks("mean").tolist() == expected
    for videos in (3, 5):
        with pytest.raises(ValueError, match=f"each of {videos} videos, got 4"):
            count_video_rivals(np.zeros((7, videos)), CAPTIONS)


def test_recall_and_ndcg_equal_torchmetrics(untied_scores):
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

    positives = np.random.default_rng(6).random(untied_scores.shape) < 0.1
    positives[:, 0] = True
    grades = np.random.default_rng(7).integers(0, 4, untied_scores.shape)
    grades[:, 0] = 1
    ranks, rows = retrieval_ranks(untied_scores, positives), range(len(untied_scores))
    preds, hits, graded = torch.tensor(untied_scores), torch.tensor(positives), torch.tensor(grades)
    for k in (1, 5, 10):
        theirs = np.mean([float(retrieval_hit_rate(preds[i], hits[i], top_k=k)) for i in rows])
        assert retrieval_metrics(ranks)[f"R@{k}"] == pytest.approx(100 * theirs)
        theirs = [float(retrieval_normalized_dcg(preds[i], graded[i], top_k=k)) for i in rows]
        np.testing.assert_allclose(ndcg(untied_scores, grades, k=k), theirs, rtol=1e-5)
    theirs = [float(retrieval_normalized_dcg(preds[i], graded[i])) for i in rows]
    np.testing.assert_allclose(ndcg(untied_scores, grades), theirs, rtol=1e-5)


def test_ndcg_bounds_and_ties(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 4)
    grades = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert ndcg(grades, grades).tolist() == [1, 1]
    assert (ndcg(-grades, grades) < 1).all()
    assert ndcg(np.zeros((1, 3)), [[1, 0, 0]])[0] == pytest.approx(
        1 / np.log2(4)
    )  # tied: the match comes last
    for relevance in ([[1, 0], [0, 0]], [[1, 0], [2, -1]], [[1, 0], [1, np.nan]]):
        with pytest.raises(ValueError, match="query 1: NaN, negative or no relevance"):
            ndcg(np.eye(2), relevance)
    with pytest.raises(ValueError, match="query 1 holds NaN"):
        ndcg([[0, 1], [0, np.nan]], [[1, 0]] * 2)
    with pytest.raises(ValueError, match="relevance of shape"):
        ndcg(np.eye(2), np.eye(3))
