"""The matrix way: what evaluation from blocks has to equal, ties included."""

import numpy as np
from scipy.special import log_softmax, logsumexp

from tvrkit.evaluation.ranks import retrieval_ranks


def best_captions(scores, owner):
    """(N_t, N_v) of captions -> (N_v, N_v) of videos, each one's best caption as one candidate."""
    videos = range(scores.shape[1])
    return np.stack([scores[owner == video].max(axis=0) for video in videos], axis=1)


def own_captions(owner):
    """Of each video its captions."""
    return [np.flatnonzero(owner == video) for video in range(max(owner) + 1)]


def max_over_captions(scores, owner, **options):
    """Video-to-text ranks of (N_t, N_v) scores."""
    return retrieval_ranks(best_captions(scores, owner), **options)


def first_hit(scores, owner, **options):
    """Video-to-text ranks among all captions."""
    return retrieval_ranks(np.transpose(scores), own_captions(owner), **options)


def dual_softmax(scores, scale=100.0):
    """(N_q, N_c): S_qc * softmax_q(scale * S_qc)."""
    scores = np.asarray(scores, np.float32).astype(np.float64)
    return scores * np.exp(log_softmax(scale * scores, axis=0))


def qb_norm(scores, bank, beta=20.0, theta=1):
    """(N_q, N_c), with scores (N_b, N_c) of a bank: what `_qb_norm` says."""
    scores, bank = (np.asarray(each, np.float32).astype(np.float64) for each in (scores, bank))
    is_hub = np.bincount(bank.argmax(1), minlength=bank.shape[1]) >= theta
    level = logsumexp(beta * bank, axis=0)
    return np.where(is_hub[scores.argmax(1)][:, None], beta * scores - level, scores)
