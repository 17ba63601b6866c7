"""Post-processing of scores, by name; reported beside the raw numbers, never in their place."""

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax, logsumexp

from tvrkit.evaluation.ranks import score_matrix
from tvrkit.settings import EvalConfig


def dual_softmax(scores, *, scale: float = 100.0) -> np.ndarray:
    """Scores times their softmax over the queries (CAMoE, arXiv 2109.04290): S_qc * softmax_q(scale
    * S_qc).

    It looks at all test queries at once, which a search engine can't: never compare it with raw
    numbers.

    Args:
        scores: (N_q, N_c), cosine scale.
        scale: inverse temperature of the softmax.

    Returns:
        (N_q, N_c) float64.
    """
    scores = score_matrix(scores).astype(np.float64)
    return scores * np.exp(log_softmax(scale * scores, axis=0))


def qb_norm(scores, bank, *, beta: float = 20.0, theta: int = 1) -> np.ndarray:
    """Querybank normalisation, dynamic inverted softmax (Bogolin et al., CVPR 2022, arXiv
    2112.12777).

    A hub is a candidate that at least theta bank queries rank first (the paper: one). A query whose
    best candidate is a hub gets the row beta * S_qc - log sum_b exp(beta * B_bc), the logarithm of
    the paper's quotient. Other rows stay.

    Args:
        scores: (N_q, N_c), cosine scale.
        bank: (N_b, N_c), scores of training queries with the same candidates.
        beta: inverse temperature.
        theta: of bank queries, at least 1; GLSCL's code takes 3 or 5.

    Returns:
        (N_q, N_c) float64; only the order within a row means something.
    """
    scores, bank = score_matrix(scores).astype(np.float64), score_matrix(bank).astype(np.float64)
    if scores.shape[1] != bank.shape[1]:
        raise ValueError(f"expected a bank with {scores.shape[1]} candidates, got {bank.shape[1]}")
    is_hub = np.bincount(bank.argmax(1), minlength=bank.shape[1]) >= theta
    return np.where(
        is_hub[scores.argmax(1)][:, None], beta * scores - logsumexp(beta * bank, axis=0), scores
    )


def postprocess_options(name: str, settings: EvalConfig, direction: str) -> dict:
    """What the recipe sets for a post-processing in one direction, "t2v" or "v2t"."""
    if name != "qbnorm":
        return {}
    beta = {"t2v": settings.qbnorm_t2v_beta, "v2t": settings.qbnorm_v2t_beta}
    theta = {"t2v": settings.qbnorm_t2v_theta, "v2t": settings.qbnorm_v2t_theta}
    return {"beta": beta[direction], "theta": theta[direction]}


def postprocess(name: str, scores, bank=None, **options) -> np.ndarray:
    """(N_q, N_c) scores after "dsl" or "qbnorm".

    Args:
        name: one of `POSTPROCESS`.
        scores: (N_q, N_c).
        bank: (N_b, N_c) scores of training queries, for those in `NEEDS_BANK`.
        options: of the function that `name` stands for.

    Raises:
        ValueError: the bank is missing.
    """
    if name not in NEEDS_BANK:
        return POSTPROCESS[name](scores, **options)
    if bank is None:
        raise ValueError(
            f"postprocess {name!r} needs a bank of training queries for both directions"
        )
    return POSTPROCESS[name](scores, bank, **options)


POSTPROCESS: dict[str, Callable] = {"dsl": dual_softmax, "qbnorm": qb_norm}
NEEDS_BANK = {"qbnorm"}
