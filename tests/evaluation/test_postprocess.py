"""Post-processing of scores, against naive loops."""

import numpy as np
import pytest

from tvrkit.evaluation.postprocess import (
    NEEDS_BANK,
    POSTPROCESS,
    dual_softmax,
    postprocess,
    postprocess_options,
    qb_norm,
)
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
    with pytest.raises(ValueError, match="bank with 8 candidates, got 7"):
        qb_norm(scores, bank[:, :7])


def test_by_name_with_a_bank_where_one_is_needed():
    scores, bank = np.eye(3), np.ones((2, 3))
    assert set(POSTPROCESS) == {"dsl", "qbnorm"}
    for name in POSTPROCESS:
        assert postprocess(name, scores, bank).shape == (3, 3)
    settings = EvalConfig(qbnorm_v2t_beta=70.0, qbnorm_v2t_theta=3)
    options = {way: postprocess_options("qbnorm", settings, way) for way in ("t2v", "v2t")}
    assert options == {"t2v": {"beta": 20.0, "theta": 1}, "v2t": {"beta": 70.0, "theta": 3}}
    assert postprocess_options("dsl", settings, "v2t") == {}
    raw = postprocess("qbnorm", scores, bank, **options["v2t"])
    assert np.array_equal(raw, scores)  # no candidate is first for three queries of the bank
    for name in NEEDS_BANK:
        with pytest.raises(ValueError, match=f"'{name}' needs a bank"):
            postprocess(name, scores)
