"""One process among several: alone here; `tests/training/test_distributed.py` has two."""

import pytest

from tvrkit.data import processes


def test_alone_a_process_has_everything():
    assert (processes.rank(), processes.count()) == (0, 1)
    assert processes.collect([1, 2, 3]) == [1, 2, 3]
    assert processes.from_main(lambda: "made") == "made"
    with pytest.raises(ZeroDivisionError):
        processes.from_main(lambda: 1 / 0)


@pytest.mark.parametrize(("total", "ranks"), [(7, 2), (3, 4), (8, 4)])
def test_parts_are_put_in_order_again(monkeypatch, total, ranks):
    """Whole batches are dealt out by turns, and some processes may get none."""
    dealt = [list(range(total))[rank::ranks] for rank in range(ranks)]

    def gather(parts, own):
        parts[:] = dealt

    monkeypatch.setattr(processes, "count", lambda: ranks)
    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    assert processes.collect(dealt[0]) == list(range(total))


def test_batches_come_in_turn(monkeypatch):
    assert list(processes.in_turn([1, 2, 3], lambda batch: [batch, -batch])) == [
        1,
        -1,
        2,
        -2,
        3,
        -3,
    ]
    batches = [[1, 3, 5], [2, 4]]  # of two processes; the main one may have one more
    rounds = iter([[[[1]], [[2]]], [[[3]], [[4]]], [[[5]], []]])

    def gather(parts, own):
        parts[:] = next(rounds)
        assert own == parts[1]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "from_main", lambda make: 3)
    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    assert list(processes.in_turn(batches[1], lambda batch: [batch])) == [1, 2, 3, 4, 5]
