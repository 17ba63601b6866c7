"""Frames that tests of several figures draw."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def frames(rng):
    """(5, 16, 16, 3) uint8."""
    return rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
