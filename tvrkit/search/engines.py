"""Who does the work of a build: threads of this process, or Ray Data on one machine or a cluster.

An engine takes files and gives tables of rows, in any order. The index alone writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from tvrkit.data.decoders import DecodePool
from tvrkit.search import rows
from tvrkit.search.clips import Clip, File, read
from tvrkit.search.encoder import Encoder

AHEAD = 16  # files that are read before they are encoded: bounds memory
COMMIT = 64  # segments, about, of a table


def local(
    files: list[File], encoder: Encoder, columns: pa.Schema, seconds: float, workers: int
) -> Iterator[pa.Table]:
    """Decoding processes ahead of one encoder, in this process.

    Args:
        files: that are read.
        encoder: that describes them.
        columns: of the tables.
        seconds: of a segment.
        workers: that decode.
    """
    with DecodePool(workers) as pool, ThreadPoolExecutor(workers) as threads:

        def start(file: File) -> Future[Clip]:
            return threads.submit(read, pool, file, encoder.frames, seconds)

        ready: list[Clip] = []
        try:
            for clip in _ahead(map(start, files)):
                ready.append(clip)
                if sum(max(1, len(clip.segments)) for clip in ready) >= COMMIT:
                    yield rows.to_table(encoder, ready, columns)
                    ready = []
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        if ready:
            yield rows.to_table(encoder, ready, columns)


def _ahead(started: Iterable[Future[Clip]]) -> Iterator[Clip]:
    """The results in order, with up to `AHEAD` under way."""
    pending: deque[Future[Clip]] = deque()
    for future in started:
        pending.append(future)
        if len(pending) == AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


ENGINES = {"local": local}
