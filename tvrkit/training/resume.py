"""What lets a run go on after a kill: its last two states, its tables row by row, and a stop that
waits for the end of a step."""

import contextlib
import hashlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch

from tvrkit import files

HASHED = 16  # hex digits of the SHA-256 that a state's name ends in


def paths(folder: Path) -> list[Path]:
    """The last two saved states of a run, `resume-<number>-<start of its SHA-256>.pt`, the oldest
    first.

    Each is written whole or not at all; where the newer one is damaged all the same, the older one
    is read.
    """
    return sorted(folder.glob("resume-*.pt"))


def save(folder: Path, state: dict) -> None:
    """Write `state` (tensors, numbers, lists, dicts) and drop all but the last two.

    Raises:
        OSError: it cannot be written; those before it stay.
    """
    before = paths(folder)
    number = int(before[-1].name.split("-")[1]) + 1 if before else 0
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / f"resume-{number:06d}-{_digest(buffer)}.pt"
    try:
        with files.replacing(path) as part:
            part.write_bytes(buffer.getbuffer())
    except OSError as error:
        size = f"{buffer.getbuffer().nbytes / 1e6:,.0f} MB"
        hint = "the state before it stays: make room and run the same command again"
        message = f"cannot save {size} as {path.name}: {error.strerror}; {hint}"
        raise OSError(error.errno, message, str(folder)) from error
    for old in before[:-1]:
        old.unlink()


def newest(folder: Path) -> dict | None:
    """The last state that is whole, None without one. Damaged ones are removed, with a line on
    stderr."""
    for path in reversed(paths(folder)):
        buffer = io.BytesIO(path.read_bytes())
        if path.stem.endswith(_digest(buffer)):
            return torch.load(buffer, map_location="cpu", weights_only=True)
        print(f"{path.name} is damaged: the state before it is used", file=sys.stderr)
        path.unlink()
    return None


def _digest(buffer: io.BytesIO) -> str:
    return hashlib.sha256(buffer.getbuffer()).hexdigest()[:HASHED]


def write_table(path: Path, rows: list[dict]) -> None:
    """A CSV file that holds these rows and no others; none without rows."""
    path.unlink(missing_ok=True)
    append(path, rows)


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file, which gets its head from the first."""
    if rows:
        table, new = pd.DataFrame(rows), not path.exists()
        table.to_csv(path, mode="a", header=new, index=False, lineterminator="\n")


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block, a first Ctrl-C or SIGTERM is only noted: what the block gets says whether
    there was one. A second one ends at once."""
    asked = threading.Event()

    def note(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # signals reach the main one
        yield asked.is_set
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
