"""Evaluation from blocks of rows against whole matrices, resampling against loops."""

import numpy as np
import pytest

from tests.evaluation.whole import dual_softmax, first_hit, max_over_captions
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.evaluation.postprocess import processed
from tvrkit.evaluation.ranks import count_rivals, count_video_rivals, retrieval_ranks
from tvrkit.evaluation.statistics import bootstrap_metrics
from tvrkit.settings import EvalConfig

SIZE, QUERIES, RESAMPLES = 3000, 20_000, 200


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    made = rng.normal(scale=0.1, size=(SIZE, SIZE)).astype(np.float32)
    made[np.diag_indices(SIZE)] += 0.4
    return made


def bench_ranks(against, scores):
    owner = np.arange(SIZE)

    def plain():
        return [retrieval_ranks(scores, owner)] + [
            find(scores, owner) for find in (max_over_captions, first_hit)
        ]

    def blocks():
        rivals = count_rivals(scores, owner), *count_video_rivals(scores, owner)
        return [each.ranks("pessimistic") for each in rivals]

    what = f"ranks of {SIZE:,} x {SIZE:,}, from blocks, against whole matrices"
    for one, other in zip(*against(plain, blocks, what), strict=True):
        np.testing.assert_array_equal(one, other)


def bench_dual_softmax(against, scores):
    owner = np.arange(SIZE)
    what = f"dual softmax and its ranks, {SIZE:,} x {SIZE:,}, from blocks, against whole matrices"

    def plain():
        return retrieval_ranks(dual_softmax(scores)), max_over_captions(
            dual_softmax(scores.T).T, owner
        )

    def blocks():
        both = processed("dsl", scores, {}, EvalConfig())
        rivals = count_rivals(both["t2v"], owner), count_video_rivals(both["v2t"], owner)[0]
        return [each.ranks("pessimistic") for each in rivals]

    for one, other in zip(*against(plain, blocks, what, rounds=3), strict=True):
        np.testing.assert_array_equal(one, other)


def bench_bootstrap(against):
    rng = np.random.default_rng(0)
    ranks, clusters = rng.geometric(0.05, QUERIES), rng.integers(0, 1000, QUERIES)

    def plain():
        """Of each resample the queries of the drawn clusters, one after the other."""
        draw, of = np.random.default_rng(0), [np.flatnonzero(clusters == c) for c in range(1000)]
        counts = draw.multinomial(1000, np.full(1000, 1e-3), size=RESAMPLES)
        drawn = [np.concatenate([np.tile(of[c], n) for c, n in enumerate(row)]) for row in counts]
        return np.array([100 * np.mean(ranks[rows] <= 1) for rows in drawn])

    def fast():
        return bootstrap_metrics(ranks, clusters, resamples=RESAMPLES)["R@1"]

    what = f"{RESAMPLES} resamples of {QUERIES:,} queries, all metrics, against a loop for R@1"
    one, other = against(plain, fast, what)
    np.testing.assert_allclose(one, other)


def bench_saving(against, scores, tmp_path):
    ids = [f"{row}" for row in range(SIZE)]
    settings = EvalConfig(bootstrap=10)
    found = Evaluation.from_similarity(scores, (ids, ids, np.arange(SIZE)), settings)
    against(
        lambda: np.savez_compressed(tmp_path / "plain.npz", similarity=scores),
        lambda: found.save(tmp_path / "run"),
        f"a run's scores, {SIZE:,} x {SIZE:,}, written as they are, against compressed",
        rounds=3,
    )
