"""Decoding by all processes of a launch: the main one runs the command, the others read with it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tvrkit.data import decoders, processes
from tvrkit.data.decoders import DecodePool, FrameSettings, Result

SHARE = 8  # files of each process in a turn, after which all wait for the slowest


class SharedPool(DecodePool):
    """The pools of all processes as one, each with its own workers."""

    def run(self, paths: Iterable[Path | str], settings: FrameSettings) -> Iterator[Result]:
        """As of any pool, called on the main process."""
        waiting = iter(paths)
        while part := list(islice(waiting, SHARE * processes.count())):
            yield from self._ask(part, settings)

    def serve(self) -> None:
        """Read what the main process asks for, until it ends."""
        while asked := processes.from_main(lambda: None):
            self._turn(*asked)

    def _ask(self, *asked: Any) -> list[Result]:
        return self._turn(*processes.from_main(lambda: asked))

    def _turn(self, part: list[Path | str], settings: FrameSettings) -> list[Result]:
        own = part[processes.rank() :: processes.count()]
        return processes.collect(list(super().run(own, settings)))


def serves(workers: int) -> bool:
    """Whether this process was there to read for the main one, and has; on that one, which has to
    `end` the others, and where there is no launch, False."""
    if processes.rank():
        with SharedPool(workers) as pool:
            pool.serve()
        return True
    if processes.count() > 1:
        decoders.new_pool = SharedPool
    return False


def end() -> None:
    """Let the others go."""
    if decoders.new_pool is SharedPool:
        processes.from_main(lambda: None)
        decoders.new_pool = DecodePool
