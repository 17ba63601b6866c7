"""A slice of the fuzz run of `python -m tests.fuzz`."""

import pytest

from tests import fuzz

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* is damaged and left out")]


def test_what_strangers_send_is_held(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    table, fallen = fuzz.fuzz(12, 7, tmp_path, report=lambda line: None)
    assert fallen == []
    assert (table.sum(axis=1) == 12).all()
    assert (table[[fuzz.OTHER, fuzz.FELL]] == 0).all(axis=None), table.to_string()
    assert (table.loc[["stores", "checkpoints"], fuzz.UNTOLD] == 0).all()


def test_the_run_can_fail(monkeypatch):
    """A traceback, a message of several lines and a wrong error each count as fallen."""

    def raising(error):
        def attack(number, chance):
            raise error

        return attack

    for error in (TypeError("x"), ValueError("a\nb"), ValueError("x" * 5000), ValueError("")):
        assert fuzz.outcome(raising(error), 0, None)[0] == fuzz.FELL
    assert fuzz.outcome(raising(ValueError("expected x, got y")), 0, None)[0] == fuzz.REFUSED
