"""This process among those of one launch: its rank, and what all of them have together."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def count() -> int:
    """Number of processes that work together; 1 where there is no launcher."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; the main one, which writes, is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def collect(own: list[T]) -> list[T]:
    """Everyone's parts on every process, in order: the n-th is of process n modulo their number."""
    if count() == 1:
        return own
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, own)
    return [parts[n % count()][n // count()] for n in range(sum(map(len, parts)))]


def in_turn(own: Any, make: Callable[[Any], list[T]]) -> Iterator[T]:
    """`make` of each of a loader's batches, a list, joined over all processes in their order.

    Each process has its own batches of `own`; all of them get everything, a round at a time.
    """
    rounds, batches = from_main(lambda: len(own)), iter(own)  # the main process has the most
    for _ in range(rounds):
        for part in collect([make(batch) for batch in islice(batches, 1)]):
            yield from part


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns on the main process, or the error it raises there, on every process."""
    if count() == 1:
        return make()
    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[1] = error
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    return made[0]
