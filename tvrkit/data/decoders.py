"""Decoding that survives hostile files: each is read in a worker process under a wall-clock limit.

A file that hangs or crashes its worker costs that worker, which is replaced; the file is tried once
more with the other decoder, and then has a reason. What runs in the worker is
`tvrkit.data.decode_worker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Pipe, wait
from pathlib import Path

import numpy as np

from tvrkit.data import decode_worker
from tvrkit.data.decode_worker import Job
from tvrkit.files import PACKAGE

__all__ = ["DecodeError", "DecodePool", "Job", "decoder_versions", "read_frames"]

START_LIMIT = 120.0  # seconds a worker may take to import its libraries
WINDOW = 64  # results that may wait for an earlier, slower one: bounds memory
Result = tuple[dict, list[bytes]]


class DecodeError(RuntimeError):
    """A file that gave no frames; the message has the reason."""


def decoder_versions() -> str:
    """What decodes, for cards and stores."""
    return f"decord {version('decord')}, PyAV {version('av')}"


def read_frames(
    path: Path | str,
    count: int,
    sampling: str = "uniform",
    size: int | None = None,
    timeout: float = 20.0,
) -> np.ndarray:
    """Frames of one video file, read in a worker process.

    Args:
        count: frames asked for; a shorter video gives all it has.
        sampling: see `tvrkit.data.sampling`; over the video's time, so a variable frame rate does no harm.
        size: short side of the result; never enlarged; None keeps the video's.
        timeout: see `DecodePool`.

    Returns:
        (F, H, W, 3) uint8 RGB, rotated as the file asks.

    Raises:
        DecodeError: no frame could be read.
    """
    with DecodePool(1, timeout) as pool:
        ((info, blobs),) = pool.run([Job(str(path), count, sampling, size)])
    if not blobs:
        raise DecodeError(f"{path}: {info['reason']}")
    return np.stack([np.frombuffer(blob, np.uint8).reshape(info["shape"]) for blob in blobs])


def _environment() -> dict[str, str]:
    """This process's, with the package to be found and one thread for each worker."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _Worker:
    """A process and the job it holds."""

    index: int
    job: Job
    decoder: str

    def __init__(self, timeout: float):
        self.connection, theirs = Pipe()
        # -P: the folder of the program, which is this one, holds no modules for it
        command = [sys.executable, "-P", decode_worker.__file__, str(theirs.fileno()), str(timeout)]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        try:
            ready = (
                self.connection.poll(START_LIMIT)
                and self.connection.recv_bytes() == decode_worker.READY
            )
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.close()
            said = self.process.stderr.read().decode(errors="replace").split("\n")
            raise RuntimeError(
                f"a decoding worker could not start: {' '.join(said[-2:]).strip() or 'no answer'}"
            )
        self.process.stderr.close()

    def send(self, index: int, job: Job, decoder: str) -> None:
        self.index, self.job, self.decoder = index, job, decoder
        with contextlib.suppress(OSError):  # a worker that died meanwhile is found by `receive`
            self.connection.send_bytes(json.dumps({**asdict(job), "decoder": decoder}).encode())

    def receive(self) -> Result | None:
        """The answer; None where the process has ended without one."""
        try:
            info = json.loads(self.connection.recv_bytes())
            return info, [self.connection.recv_bytes() for _ in range(info["frames"])]
        except (EOFError, OSError):
            return None

    def close(self) -> int:
        """End the process.

        Returns:
            Its exit status, negative for a signal.
        """
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class DecodePool:
    """Worker processes that turn jobs into frames or reasons. A context manager.

    Args:
        workers: processes.
        timeout: wall-clock seconds a decoder may take per file, and one more per 200 frames of a
            long one. The kernel's alarm then ends the worker, whatever it is stuck in and even if
            this process is gone.
    """

    def __init__(self, workers: int = 2, timeout: float = 20.0):
        self.timeout = timeout
        self.size = workers
        self.workers: list[_Worker] = []

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *exception) -> None:
        for worker in self.workers:
            worker.close()
        self.workers = []

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Results in the order of the jobs. To be read to the end, or the pool closed.

        Yields:
            (info, frames). info: frames (got), shape (H, W, 3), fps, duration (s), width, height
            (as shown), decoder, reason ("" where all is well; a damaged file that gave frames says
            what is wrong with it).
            frames: JPEG files, or raw bytes of `shape`.
        """
        queue = deque(enumerate(jobs))
        total = len(queue)
        while len(self.workers) < min(self.size, total):
            self.workers.append(_Worker(self.timeout))
        idle, busy, done = list(self.workers), {}, {}
        for turn in range(total):
            while turn not in done:
                while idle and queue and queue[0][0] < turn + WINDOW:
                    worker = idle.pop()
                    worker.send(*queue.popleft(), decode_worker.BEST)
                    busy[worker.connection] = worker
                for connection in wait(list(busy)):
                    worker = busy.pop(connection)
                    result = worker.receive()
                    if result is None:
                        worker, result = self._replace(worker)
                    if result is None:
                        busy[worker.connection] = worker
                    else:
                        done[worker.index] = result
                        idle.append(worker)
            yield done.pop(turn)

    def _replace(self, dead: _Worker) -> tuple[_Worker, Result | None]:
        """A new worker, at work on the file with the other decoder; or idle, with the reason, if
        there is none."""
        code = dead.close()
        worker = _Worker(self.timeout)
        self.workers[self.workers.index(dead)] = worker
        if dead.decoder == decode_worker.BEST:
            worker.send(dead.index, dead.job, decode_worker.SECOND)
            return worker, None
        worker.index = dead.index
        hung = code == -signal.SIGALRM
        reason = (
            f"hangs: stopped after {self.timeout:g} s"
            if hung
            else f"crashes the decoder (status {code})"
        )
        return worker, (decode_worker.about(reason=reason), [])
