"""Stand-ins that several tests share."""

import numpy as np

from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.settings import EvalConfig


def ranked(ranks_of_own, seed=0, **settings):
    """An `Evaluation` of one caption a video in which caption i has the rank `ranks_of_own[i]`."""
    rng, count = np.random.default_rng(seed), len(ranks_of_own)
    scores = np.zeros((count, count), np.float32)
    for row, rank in enumerate(ranks_of_own):
        others = rng.permutation(np.delete(np.arange(count), row))
        scores[row, np.insert(others, rank - 1, row)] = np.linspace(1, 0, count)
    return from_scores(scores, np.arange(count), **settings)


def from_scores(scores, video_of_caption, **settings):
    """An `Evaluation` of a matrix, with numbered ids and the labels of a whole test split."""
    ids = [
        [f"{kind}{row}" for row in range(n)] for kind, n in zip("cv", np.shape(scores), strict=True)
    ]
    settings = EvalConfig(**{"bootstrap": 100, **settings})
    labels = {"split": "test", "selection": "last", "complete": True, "missing": []}
    return Evaluation.from_similarity(scores, *ids, video_of_caption, settings, **labels)
