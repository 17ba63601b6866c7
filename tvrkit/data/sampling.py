"""Which frames of a video are taken. Imports numpy only: decoding workers use it too."""

import numpy as np
from numpy.random import Generator

from tvrkit.files import expect


def uniform(available: int, count: int, rng: Generator) -> np.ndarray:
    """The middle of each of `count` equal segments."""
    return ((np.arange(count) + 0.5) * available / count).astype(np.int64)


def random(available: int, count: int, rng: Generator) -> np.ndarray:
    """Any `count` distinct frames."""
    return np.sort(rng.choice(available, count, replace=False))


def segment_random(available: int, count: int, rng: Generator) -> np.ndarray:
    """A random frame of each of `count` equal segments."""
    edges = np.arange(count + 1) * available // count
    return rng.integers(edges[:-1], edges[1:])


def head(available: int, count: int, rng: Generator) -> np.ndarray:
    """The first frames."""
    return np.arange(count)


def tail(available: int, count: int, rng: Generator) -> np.ndarray:
    """The last frames."""
    return np.arange(available - count, available)


SAMPLERS = {
    "uniform": uniform,
    "random": random,
    "segment-random": segment_random,
    "head": head,
    "tail": tail,
}


def sample(sampling: str, available: int, count: int, rng: Generator | None = None) -> np.ndarray:
    """Which of `available` frames are taken.

    Args:
        sampling: a name of `SAMPLERS`.
        count: how many; a video with no more frames than that gives each of them.
        rng: source of the two random samplings; seeded with 0 where None.

    Returns:
        (min(count, available),) int64, rising.

    Raises:
        ValueError: unknown sampling, or a count below 1.
    """
    expect(sampling in SAMPLERS, "sampling", f"one of {', '.join(sorted(SAMPLERS))}", sampling)
    expect(count >= 1, "frames", "a count of at least 1", count)
    if count >= available:
        return np.arange(available)
    return SAMPLERS[sampling](available, count, rng or np.random.default_rng(0))
