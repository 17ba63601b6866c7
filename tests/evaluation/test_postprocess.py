"""Post-processing of scores, against naive loops."""

import numpy as np
import pytest

from tests.evaluation.whole import dual_softmax, qb_norm
from tvrkit.evaluation import ranks
from tvrkit.evaluation.postprocess import NEEDS_BANK, POSTPROCESS, processed
from tvrkit.evaluation.ranks import retrieval_metrics, retrieval_ranks
from tvrkit.settings import EvalConfig


def test_dual_softmax_equals_naive_loops_and_undoes_a_hub():
    scores = np.random.default_rng(8).uniform(-1, 1, (5, 4)).astype(np.float32)
    expected = np.empty((5, 4))
    for q in range(5):
        for c in range(4):
            exponents = [np.exp(10.0 * float(scores[p, c])) for p in range(5)]
            expected[q, c] = scores[q, c] * exponents[q] / sum(exponents)
    np.testing.assert_allclose(dual_softmax(scores, scale=10), expected, rtol=1e-6)
    hubby = np.eye(6) * 0.1 + 0.3
    hubby[:, 0] = 0.45  # every query's favourite
    hubby[0, 0] = 0.5
    assert retrieval_metrics(retrieval_ranks(hubby))["R@1"] < 20
    assert retrieval_metrics(retrieval_ranks(dual_softmax(hubby)))["R@1"] == 100


@pytest.mark.parametrize("theta", [1, 2])
def test_qb_norm_orders_like_the_published_quotient(theta):
    rng = np.random.default_rng(9)
    scores, bank = rng.uniform(-1, 1, (24, 8)), rng.uniform(-1, 1, (5 * theta, 8))
    found = qb_norm(scores, bank, beta=20.0, theta=theta)
    firsts = [int(row.argmax()) for row in bank]
    hubs = {column for column in firsts if firsts.count(column) >= theta}
    touched = 0
    for row, before in zip(found, scores.astype(np.float32), strict=True):
        if int(before.argmax()) in hubs:
            quotient = [np.exp(20 * before[c]) / sum(np.exp(20 * bank[:, c])) for c in range(8)]
            assert np.argsort(row).tolist() == np.argsort(quotient).tolist()
            touched += 1
        else:
            assert row.tolist() == before.tolist()
    assert 0 < touched < 24


QBNORM = EvalConfig(
    qbnorm_t2v_beta=15.0, qbnorm_t2v_theta=2, qbnorm_v2t_beta=70.0, qbnorm_v2t_theta=3
)


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
@pytest.mark.parametrize("levels", [5, 10**6])
def test_rows_made_when_asked_for_equal_the_whole_matrix(chunk, levels, monkeypatch):
    monkeypatch.setattr(ranks, "CHUNK", chunk)
    rng = np.random.default_rng(10)
    scores, to_videos, to_captions = (
        rng.integers(-levels, levels, shape).astype(np.float32) / levels
        for shape in ((60, 20), (45, 20), (60, 50))
    )
    dsl = processed("dsl", scores, {}, EvalConfig())
    plain = {"t2v": dual_softmax(scores), "v2t": dual_softmax(scores.T).T}
    for way, expected in plain.items():
        np.testing.assert_array_equal(dsl[way][:], expected.astype(np.float32))
        np.testing.assert_array_equal(dsl[way][[7, 3]], expected[[7, 3]].astype(np.float32))
    found = processed("qbnorm", scores, {"t2v": to_videos, "v2t": to_captions}, QBNORM)
    plain = {
        "t2v": qb_norm(scores, to_videos, beta=15.0, theta=2),
        "v2t": qb_norm(scores.T, to_captions.T, beta=70.0, theta=3).T,
    }
    for way, expected in plain.items():
        assert 0 < (expected != scores).mean() < 1  # some are hubs, some are not
        np.testing.assert_allclose(found[way][:], expected, rtol=1e-6)
        for place in (0, 1):  # so many better, so many tied, whatever the block
            owner = np.arange(60) % 20
            rivals = [ranks.count_rivals(each, owner)[place] for each in (found[way], expected)]
            assert rivals[0].tolist() == rivals[1].tolist()


def test_by_name_with_banks_where_they_are_needed():
    scores = np.eye(3, dtype=np.float32)
    assert set(POSTPROCESS) == {"dsl", "qbnorm"}
    for name in NEEDS_BANK:
        with pytest.raises(ValueError, match=f"'{name}' needs a bank"):
            processed(name, scores, {}, QBNORM)
    # no candidate is first for two captions, or three videos, of the bank
    banks = {"t2v": np.ones((1, 3)), "v2t": np.ones((3, 2))}
    for rows in processed("qbnorm", scores, banks, QBNORM).values():
        np.testing.assert_array_equal(rows[:], scores)
    with pytest.raises(ValueError, match="v2t: expected a bank with 3 candidates, got 2"):
        processed("qbnorm", scores, banks | {"v2t": np.ones((2, 3))}, QBNORM)
