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
