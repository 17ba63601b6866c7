"""The simulation of false verdicts: parts estimated from runs; tests that tell what they should."""

import numpy as np
import pytest

from tests import false_positives
from tests.fakes import finished_run


def test_latent_correlation_is_found_again():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=20_000), rng.normal(size=(2, 20_000))
    one, two = 0.8 * shared + 0.6 * own > 0.4  # correlation 0.64
    assert false_positives.latent_correlation(one, two) == pytest.approx(0.64, abs=0.03)


def test_a_large_difference_is_told_and_luck_of_seeds_fools_only_the_weights():
    spread = {"video": 0.8, "recipe x video": 0.3, "rest": 0.4, "seed": 0.3, "R@1": 40.0}
    cluster = np.arange(1600) // 4
    found = false_positives.told(spread, cluster, 6, shift=2.0, worlds=20)
    assert set(found.values()) == {100.0}
    false = false_positives.told(spread, cluster, 3, worlds=100)
    assert false["weights (sign flip)"] > 30
    assert false["recipe (seeds and videos)"] <= 10


def test_copies_of_a_seed_have_no_luck_of_their_own(home):
    runs = [finished_run("alpha", skill=2), finished_run("beta", skill=2)]
    assert false_positives.seed_variance([runs], "t2v R@1") == 0.0


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
