"""Post-processing of scores, by name; reported beside the raw numbers, never in their place.

`processed` reads a matrix by blocks of rows and never holds it: what each query or candidate needs
to know of all the others, then rows as they are asked for.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np

from tvrkit.evaluation.ranks import Rows, blocks, score_matrix
from tvrkit.settings import EvalConfig

QUERIES = {"t2v": 0, "v2t": 1}  # the axis that they lie along, captions in rows
SCALE = 100.0  # inverse temperature of the dual softmax


def processed(name: str, scores, banks: dict, settings: EvalConfig) -> dict[str, Rows]:
    """Scores of captions (rows) and videos after "dsl" or "qbnorm", for each direction.

    Args:
        name: one of `POSTPROCESS`.
        scores: (N_t, N_v), cosine scale; read by rows.
        banks: for those in `NEEDS_BANK`: "t2v" (N_b, N_v), scores of training captions with the
            same videos, and "v2t" (N_t, N_b), of the same captions with training videos.
        settings: of QB-Norm.

    Raises:
        ValueError: the banks are missing, or of other videos or captions.
    """
    scores = score_matrix(scores)
    if name in NEEDS_BANK and not banks:
        raise ValueError(f"postprocess {name!r} needs a bank of training queries for each way")

    def rows_by(make: Callable) -> Rows:
        return Rows(scores.shape, lambda rows: make(scores[rows].astype(np.float64), rows))

    return {way: rows_by(POSTPROCESS[name](scores, way, banks, settings)) for way in QUERIES}


def _dual_softmax(scores, way: str, banks: dict, settings: EvalConfig) -> Callable:
    """Scores times their softmax over the queries (CAMoE, arXiv 2109.04290): S_qc * softmax_q(scale
    * S_qc).

    It looks at all test queries at once, which a search engine can't: never compare it with raw
    numbers.
    """
    largest, total = np.broadcast_to(_log_sum(scores, SCALE, QUERIES[way]), (2, *scores.shape))
    return lambda block, rows: block * np.exp(SCALE * block - largest[rows] - total[rows])


def _qb_norm(scores, way: str, banks: dict, settings: EvalConfig) -> Callable:
    """Querybank normalisation, dynamic inverted softmax (Bogolin et al., CVPR 2022, arXiv
    2112.12777).

    A hub is a candidate that at least theta bank queries rank first (the paper: one; GLSCL's code:
    3 or 5). A query whose best candidate is a hub gets the scores beta * S_qc - log sum_b exp(beta
    * B_bc), the logarithm of the paper's quotient. Others stay: only the order of a query's
    candidates means something.
    """
    beta, theta = (getattr(settings, f"qbnorm_{way}_{name}") for name in ("beta", "theta"))
    bank, queries, candidates = score_matrix(banks[way]), QUERIES[way], 1 - QUERIES[way]
    count, got = scores.shape[candidates], bank.shape[candidates]
    if got != count:
        raise ValueError(f"{way}: expected a bank with {count} candidates, got {got}")
    is_hub = np.bincount(_best(bank, candidates), minlength=count) >= theta
    of_query = np.expand_dims(is_hub[_best(scores, candidates)], candidates)
    touched = np.broadcast_to(of_query, scores.shape)
    level = np.broadcast_to(_log_sum(bank, beta, queries).sum(0), scores.shape)
    return lambda block, rows: np.where(touched[rows], beta * block - level[rows], block)


def _best(scores, axis: int) -> np.ndarray:
    """`scores.argmax(axis)`, from blocks."""
    if axis == 1:
        return np.concatenate([block.argmax(1) for _, block in blocks(scores)])
    value, best = np.full(scores.shape[1], -np.inf), np.zeros(scores.shape[1], int)
    for rows, block in blocks(scores):
        better = block.max(0) > value
        best[better] = rows.start + block[:, better].argmax(0)
        value = np.maximum(value, block.max(0))
    return best


def _log_sum(scores, scale: float, axis: int) -> np.ndarray:
    """log sum exp(scale * scores) over an axis, from blocks, in two parts: the largest exponent,
    and the rest, added up in the order in which numpy adds a whole matrix."""

    def exponents() -> Iterator[np.ndarray]:
        return (scale * block.astype(np.float64) for _, block in blocks(scores))

    if axis == 1:
        parts = [(x.max(1), np.exp(x - x.max(1)[:, None]).sum(1)) for x in exponents()]
        largest, total = np.concatenate(parts, axis=1)
    else:
        largest = reduce(np.maximum, (x.max(0) for x in exponents()))
        total = np.zeros_like(largest)
        for x in exponents():
            total = np.vstack([total, np.exp(x - largest)]).sum(0)
    return np.expand_dims([largest, np.log(total)], 1 + axis)


POSTPROCESS: dict[str, Callable] = {"dsl": _dual_softmax, "qbnorm": _qb_norm}
NEEDS_BANK = {"qbnorm"}
