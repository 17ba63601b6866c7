"""Every check of the parity table, on the committed numbers and on the full set."""

import pytest

from tests.parity import CHECKS, COMMITTED, results

pytestmark = pytest.mark.slow

VALUE, GRADIENT = 1e-5, 1e-4
WHOLE_MODEL = 1e-4  # section i: features through all towers, scores times 100


def assert_parity(check, folder):
    for g in results(check, folder):
        assert g.value <= (WHOLE_MODEL if check.section == "i" else VALUE)
        assert g.gradient <= GRADIENT


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c.committed], ids=lambda check: check.function
)
def test_committed_numbers(check):
    assert_parity(check, COMMITTED)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.function)
def test_full_numbers(check, golden):
    assert_parity(check, golden)
