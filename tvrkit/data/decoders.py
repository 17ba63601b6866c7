"""Decoding that survives hostile files: each is read in a worker process under a wall-clock limit.

A file that hangs or crashes its worker costs that worker, which is replaced; if decord was reading,
the file is tried once more by PyAV; then it has a reason. What runs in the worker is
`tvrkit.data.decode_worker`.

The workers are a program of their own and not `multiprocessing`'s: they start in a third of a
second whatever the main module has loaded, never run a user's script again, and take no memory map
or lock over from it. Their limit is the kernel's alarm, which holds even if this process is gone.
"""

import io
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import files, version
from importlib.util import find_spec
from multiprocessing.connection import Pipe
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import get_ident
from typing import Self

import numpy as np

from tvrkit.data.sampling import sample
from tvrkit.files import PACKAGE, expect

DECODERS = ("auto", "decord", "pyav")
TIMEOUT = 20.0  # seconds
MAX_PIXELS = 1 << 26  # of a picture: twice those of 8K video
READY, DECORD = b"ready", b"decord is asked"
START_LIMIT = 120.0  # seconds a worker may take to import its libraries
# of the environment, which may hold secrets; decord looks at PATH
KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
WINDOW = 64  # results that may wait for an earlier, slower one: bounds memory


class DecodeError(RuntimeError):
    """A file that gave no frames; the message has the reason."""


@dataclass(frozen=True)
class FrameSettings:
    """What is read of each video.

    Attributes:
        frames: how many, chosen over the video's time, so a variable frame rate does no harm; a
            shorter video gives all it has.
        short_side: pixels that larger videos are scaled down to, never up; None keeps every size.
        sampling: a name of `tvrkit.data.sampling`.
        quality: of the JPEG files, 1 to 100; None gives .npy files of (H, W, 3) uint8 RGB.
        chroma: "444", or "420" for colours of half the height and width, as nearly all videos have
            them: a third less to store and to decode.
        decoder: "auto" is decord where it is installed and right about the file, PyAV elsewhere;
            "decord" refuses files that it may be wrong about; "pyav" reads every file.
        window: seconds of the video that are read, (start, end); None for all of it.

    Raises:
        ValueError: unknown sampling or decoder, no frames, or an empty window.
    """

    frames: int
    short_side: int | None = None
    sampling: str = "uniform"
    quality: int | None = 90
    chroma: str = "444"
    decoder: str = "auto"
    window: tuple[float, float] | None = None

    def __post_init__(self):
        sample(self.sampling, 1, self.frames)
        expect(self.decoder in DECODERS, "decoder", f"one of {', '.join(DECODERS)}", self.decoder)
        if self.window and not 0 <= self.window[0] < self.window[1]:
            raise ValueError(f"window {self.window}: expected 0 <= start < end, in seconds")


@dataclass(frozen=True)
class VideoInfo:
    """What became of a file.

    Attributes:
        frames: that were read.
        duration: seconds.
        width, height: of the video as it is shown.
        decoder: that read it.
        why: that one, see `decode_worker._doubt`.
        reason: "" where all is well; a damaged file that gave frames says what is wrong with it.
    """

    frames: int = 0
    fps: float = 0.0
    duration: float = 0.0
    width: int = 0
    height: int = 0
    decoder: str = ""
    why: str = ""
    reason: str = ""


Result = tuple[VideoInfo, list[bytes]]


def decoder_versions(decoder: str = FrameSettings.decoder) -> str:
    """What reads files under this setting, for cards and stores: "PyAV 18.1.0 (libavcodec 62.28)",
    with the version of FFmpeg's library that comes with each.

    Raises:
        ValueError: "decord" where it is not installed.
    """
    packages = {"decord": "decord", "PyAV": "av"}
    used = [n for n, p in packages.items() if decoder in ("auto", n.lower()) and find_spec(p)]
    expect(used, "decoder", "an installed one, 'auto' or 'pyav'", repr(decoder))
    return ", ".join(f"{name} {_version(packages[name])}" for name in used)


def _version(package: str) -> str:
    names = (file.name for file in files(package) or () if file.name.startswith("libavcodec"))
    library = re.search(r"\d+\.\d+\.\d+", next(names, ""))
    return f"{version(package)} (libavcodec {library[0] if library else 'of this machine'})"


def read_frames(path: Path | str, settings: FrameSettings, timeout: float = TIMEOUT) -> np.ndarray:
    """Frames of one video file, read in a worker process.

    Args:
        settings: `quality` counts for nothing: the frames are as decoded.
        timeout: see `DecodePool`.

    Returns:
        (F, H, W, 3) uint8 RGB, rotated as the file asks.

    Raises:
        DecodeError: no frame could be read.
    """
    with DecodePool(1, timeout) as pool:
        ((info, frames),) = pool.run([path], replace(settings, quality=None))
    if not frames:
        raise DecodeError(f"{path}: {info.reason}")
    return np.stack([np.load(io.BytesIO(frame)) for frame in frames])


class DecodePool:
    """Worker processes that turn files into frames or reasons. A context manager.

    Args:
        workers: processes; each is started and held by a thread of this process.
        timeout: wall-clock seconds a decoder may take per file, and one more per 200 frames of a
            long one, but not more than one per 20 kB.
    """

    def __init__(self, workers: int = 2, timeout: float = TIMEOUT):
        self.timeout = timeout
        self._threads = ThreadPoolExecutor(workers)
        self.held: dict[int, _Worker] = {}  # by the thread that holds it
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self._closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self.held.values()):
            worker.process.kill()
        self._threads.shutdown()
        for worker in self.held.values():
            worker.close()

    def run(self, paths: Iterable[Path | str], settings: FrameSettings) -> Iterator[Result]:
        """(info, frames) of each file in the order of `paths`; the frames are files of bytes, see
        `FrameSettings.quality`.

        Raises:
            RuntimeError: a worker could not start.
        """
        pending: deque[Future[Result]] = deque()
        for path in paths:
            pending.append(self._threads.submit(self._read, str(path), settings))
            if len(pending) == WINDOW:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _read(self, path: str, settings: FrameSettings) -> Result:
        """The file's result; where a worker dies of decord, a new one tries again without."""
        me = get_ident()
        self.held[me] = worker = self.held.get(me) or _Worker(self.timeout)
        # A worker that was just starting when the pool was left was not killed with the others.
        if self._closing:
            return VideoInfo(), []
        if result := worker.read(path, settings):
            return result
        status = self.held.pop(me).close()
        if worker.asked and settings.decoder == "auto":
            info, frames = self._read(path, replace(settings, decoder="pyav"))
            return replace(info, why="decord hangs or crashes"), frames
        hangs = status == -signal.SIGALRM
        reason = f"hangs: stopped after {self.timeout:g} s"
        return VideoInfo(reason=reason if hangs else f"crashes the decoder (status {status})"), []


new_pool: type[DecodePool] = DecodePool  # another in a launch, see `tvrkit.data.shared_decoding`


class _Worker:
    """A process that reads one file after another.

    Attributes:
        asked: it has begun to read the last one by decord.
    """

    def __init__(self, timeout: float):
        self.connection, theirs = Pipe()
        fd = theirs.fileno()
        program = [sys.executable, "-P", "-m", "tvrkit.data.decode_worker", str(fd), str(timeout)]
        self.process = Popen(
            program, pass_fds=[fd], env=_environment(), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
        )
        theirs.close()
        with suppress(EOFError, OSError):
            if self.connection.poll(START_LIMIT) and self.connection.recv_bytes() == READY:
                return
        self.close()
        why = self.errors.decode(errors="replace").strip().split("\n")[-1] or "no answer"
        raise RuntimeError(f"a decoding worker could not start: {why}")

    def read(self, path: str, settings: FrameSettings) -> Result | None:
        """What became of the file; None where the process has ended without an answer."""
        try:
            self.asked = False
            self.connection.send_bytes(json.dumps([path, asdict(settings)]).encode())
            while (message := self.connection.recv_bytes()) == DECORD:
                self.asked = True
            info = VideoInfo(**json.loads(message))
            return info, [self.connection.recv_bytes() for _ in range(info.frames)]
        except (EOFError, OSError):
            return None

    def close(self) -> int:
        """End the process.

        Returns:
            Its exit status, negative for a signal.
        """
        self.connection.close()
        self.process.kill()
        _, self.errors = self.process.communicate()
        return self.process.returncode


def _environment() -> dict[str, str]:
    """What a worker needs: where libraries and the package are, and one thread."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
