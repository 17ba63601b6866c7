"""Decoding that survives hostile files: every file is read in a worker process under a wall-clock limit.

decord reads what it is right about: plain MP4, Matroska and AVI whose header and packets agree. PyAV reads the rest
(MPEG-TS, whose frames decord mixes up; wrong frame counts, which make decord hang; rotation; 10-bit, 4:4:4 and odd
sizes; several video streams) and everything that decord failed on or hung at.

Run as a program, this file is the worker. It imports nothing of the package: a worker starts in a third of a second,
holds no torch, and can be killed and replaced at little cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import numpy as np

DECODERS = ("decord", "pyav")
DECORD_FORMATS = {"mov", "matroska", "avi"}
DECORD_PIXELS = {"yuv420p", "yuvj420p"}
NO_VIDEO_FORMATS = {
    "hls",
    "dash",
    "concat",
    "sdp",
    "tty",
    "image2",
}  # lists of other files, addresses, text, stills
MEMORY_LIMIT = (
    4 << 30
)  # bytes of address space: a header that claims absurd sizes costs its worker, not the machine
START_LIMIT = 120.0  # seconds a worker may take to import its libraries
WINDOW = 64  # results that wait for an earlier, slower one; bounds memory


def _uniform(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return ((np.arange(count) + 0.5) * available / count).astype(np.int64)


def _random(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(available, count, replace=False))


def _segment_random(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    edges = np.arange(count + 1) * available // count
    return rng.integers(edges[:-1], edges[1:])


def _head(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count)


def _tail(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(available - count, available)


SAMPLERS = {
    "uniform": _uniform,
    "random": _random,
    "segment-random": _segment_random,
    "head": _head,
    "tail": _tail,
}


def sample(sampling: str, available: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Which of `available` frames are taken.

    uniform: the middle of each of `count` equal segments; segment-random: a random frame of each; random: any
    `count` distinct ones; head, tail: the first, the last ones.

    Args:
        rng: source of the two random samplings; seeded with 0 where None.

    Returns:
        (min(count, available),) int64, rising. A video with no more frames than asked for gives each of them once.

    Raises:
        ValueError: unknown sampling.
    """
    if sampling not in SAMPLERS:
        raise ValueError(f"unknown sampling {sampling!r}: expected one of {', '.join(sorted(SAMPLERS))}")
    if count >= available:
        return np.arange(available)
    return SAMPLERS[sampling](available, count, rng or np.random.default_rng(0))


@dataclass(frozen=True)
class Job:
    """One file to read: `count` frames chosen by `sampling`, short side at most `size`, JPEG of `quality` or raw."""

    path: str
    count: int
    sampling: str = "uniform"
    size: int | None = None
    quality: int | None = None


class DecodeError(RuntimeError):
    """A file that gave no frames; the message is the reason."""


def decoder_versions() -> str:
    """What decodes, for cards and stores."""
    return f"decord {version('decord')}, PyAV {version('av')}"


def read_frames(
    path: Path | str, count: int, sampling: str = "uniform", size: int | None = None, timeout: float = 20.0
) -> np.ndarray:
    """Frames of one video file, read in a worker process.

    Args:
        count: frames asked for; a shorter video gives all it has.
        sampling: see `sample`; over the video's time, so a variable frame rate does no harm.
        size: short side of the result; never enlarged; None keeps the video's.
        timeout: seconds per decoder.

    Returns:
        (F, H, W, 3) uint8 RGB, rotated as the file asks.

    Raises:
        DecodeError: no frame could be read; the reason.
    """
    with DecodePool(1, timeout) as pool:
        ((info, blobs),) = pool.run([Job(str(path), count, sampling, size)])
    if not blobs:
        raise DecodeError(f"{path}: {info['reason']}")
    return np.stack([np.frombuffer(blob, np.uint8).reshape(info["shape"]) for blob in blobs])


class _Worker:
    """A process of this file and the job it holds."""

    def __init__(self, timeout: float):
        self.connection, theirs = Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", __file__, str(theirs.fileno()), str(timeout)]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        try:
            ready = self.connection.poll(START_LIMIT) and self.connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.close()
            said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"a decoding worker could not start: {said[-1] if said else 'no answer'}")
        self.process.stderr.close()  # the libraries' chatter about broken files has no reader from here on

    def send(self, index: int, job: Job, decoder: str | None) -> None:
        self.index, self.job, self.decoder = index, job, decoder
        with contextlib.suppress(BrokenPipeError):  # a worker that died meanwhile is found by `receive`
            self.connection.send_bytes(json.dumps({**asdict(job), "decoder": decoder}).encode())

    def receive(self) -> tuple[dict, list[bytes]] | None:
        """The answer; None where the process has ended without one."""
        try:
            info = json.loads(self.connection.recv_bytes())
            return info, [self.connection.recv_bytes() for _ in range(info["frames"])]
        except (EOFError, OSError):
            return None

    def close(self) -> int:
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class DecodePool:
    """Worker processes that turn jobs into frames or reasons. A context manager.

    Args:
        workers: processes.
        timeout: wall-clock seconds a decoder may take per file; the kernel's alarm then ends the worker, whatever it
            is stuck in and even if this process is gone.
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

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[dict, list[bytes]]]:
        """Results in the order of the jobs.

        Yields:
            (info, frames): info has frames (got), shape (H, W, 3), fps, duration (s), width, height (as shown),
            decoder, and reason ("" where all is well; a damaged file that gave frames says what is wrong with it);
            frames are JPEG files, or raw bytes of `shape`.
        """
        queue = deque(enumerate(jobs))
        self.workers += [_Worker(self.timeout) for _ in range(min(self.size, len(queue)) - len(self.workers))]
        idle, busy, done, total = list(self.workers), {}, {}, len(queue)
        for turn in range(total):
            while turn not in done:
                while idle and queue and queue[0][0] < turn + WINDOW:
                    worker = idle.pop()
                    worker.send(*queue.popleft(), None)
                    busy[worker.connection] = worker
                for connection in wait(list(busy)):
                    worker = busy.pop(connection)
                    result = worker.receive()
                    if result is None:
                        worker, result = self._replace(worker)
                    if result is None:  # the second decoder has the file now
                        busy[worker.connection] = worker
                    else:
                        done[worker.index] = result
                        idle.append(worker)
            yield done.pop(turn)

    def _replace(self, dead: _Worker) -> tuple[_Worker, tuple[dict, list[bytes]] | None]:
        """A new worker; the result too where no decoder is left to try."""
        code = dead.close()
        new = _Worker(self.timeout)
        self.workers[self.workers.index(dead)] = new
        if dead.decoder is None:
            new.send(dead.index, dead.job, "pyav")
            return new, None
        new.index = dead.index
        took_too_long = -code in (signal.SIGALRM, signal.SIGKILL)
        reason = (
            f"hangs: stopped after {self.timeout:g} s"
            if took_too_long
            else f"crashes the decoder (exit {code})"
        )
        return new, (_info(reason=reason), [])


def _info(**known) -> dict:
    empty = {"frames": 0, "shape": None, "fps": 0.0, "duration": 0.0, "width": 0, "height": 0}
    return {**empty, "decoder": "", "reason": "", **known}


# The worker: from here on everything runs in its process.


@dataclass(frozen=True)
class _Probe:
    """What the packets of a file say, without decoding more than one frame."""

    times: (
        np.ndarray
    )  # (N,) int64 presentation times of the frames in `base` units, rising; (0,) where not stored
    keys: np.ndarray  # the times a decoder can start at
    count: int  # frames there are
    base: float  # seconds per unit
    fps: float
    width: int
    height: int
    rotation: int  # quarter turns counter-clockwise that show the picture upright
    plain: bool  # decord is right about such files
    damage: str

    @property
    def duration(self) -> float:
        return self.count / self.fps


def _open(path: str):
    import av

    container = av.open(path, options={"protocol_whitelist": "file"})
    names = set(container.format.name.split(","))
    if names & NO_VIDEO_FORMATS or any(name.endswith("_pipe") for name in names):
        raise DecodeError(f"not a video ({container.format.name})")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise DecodeError("no video stream" + (", only audio" if container.streams.audio else ""))
    streams[0].codec_context.thread_count = 1
    return container, streams[0], names, len(streams)


def _packets(container, stream):
    """The packets up to the first that can't be read."""
    import av

    with contextlib.suppress(av.error.FFmpegError):
        yield from container.demux(stream)


def _decoded(container, stream):
    """The frames that can be decoded; broken packets are passed over."""
    import av

    for packet in _packets(container, stream):
        with contextlib.suppress(av.error.InvalidDataError):
            yield from packet.decode()


def _probe(path: str) -> _Probe:
    container, stream, names, streams = _open(path)
    with container:
        packets = [p for p in _packets(container, stream) if p.size and not p.is_discard]
        stamps = [(p.pts if p.pts is not None else p.dts, p.is_keyframe) for p in packets]
        promised, base = stream.frames, float(stream.time_base)
        rate = float(stream.average_rate or stream.base_rate or 0) or 25.0
    container, stream, *_ = _open(path)
    with container:
        first = next(_decoded(container, stream), None)
    if first is None:
        raise DecodeError("no frame can be decoded" if stamps else "no frames")
    known = all(stamp is not None for stamp, _ in stamps)
    times = np.unique([stamp for stamp, _ in stamps]) if known else np.empty(0, np.int64)
    clean = len(times) == len(stamps)
    keys = np.sort([stamp for stamp, key in stamps if key]) if clean else times[:0]
    if clean and len(times) > 1:
        rate = (len(times) - 1) / ((times[-1] - times[0]) * base)
    plain = (
        clean
        and streams == 1
        and promised in (0, len(stamps))
        and bool(names & DECORD_FORMATS)
        and first.format.name in DECORD_PIXELS
        and not (first.rotation or first.width % 2 or first.height % 2)
    )
    damage = f"cut off: {len(stamps)} of {promised} frames are there" if promised > len(stamps) else ""
    turns = round(first.rotation / 90) % 4
    return _Probe(
        times if clean else times[:0],
        keys,
        len(stamps),
        base,
        rate,
        first.width,
        first.height,
        turns,
        plain,
        damage,
    )


def _timeline(times: np.ndarray) -> np.ndarray:
    """(N,) the frame shown in the middle of each of N equal spans of time: 0..N-1 at a constant frame rate."""
    step = (times[-1] - times[0]) / (len(times) - 1)
    middle = times[0] + (np.arange(len(times)) + 0.5) * step
    return np.searchsorted(times, middle, side="right") - 1


def _scaled(width: int, height: int, size: int | None) -> tuple[int, int]:
    scale = 1.0 if size is None else min(1.0, size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _by_decord(path: str, probe: _Probe, wanted: np.ndarray, size: int | None) -> np.ndarray:
    import decord

    width, height = _scaled(probe.width, probe.height, size)
    scaled = {} if size is None else {"width": width, "height": height}
    reader = decord.VideoReader(path, num_threads=1, **scaled)
    if len(reader) != probe.count:
        raise DecodeError(f"decord counts {len(reader)} frames, the file has {probe.count}")
    starts = reader.get_frame_timestamp(wanted)[:, 0]
    if np.abs(starts - (probe.times[wanted] - probe.times[0]) * probe.base).max() > 0.5 / probe.fps:
        raise DecodeError("decord and the file disagree about time")
    return reader.get_batch(wanted).asnumpy()


class _InexactSeek(Exception):
    """The frame sought did not come."""


def _by_pyav(path: str, probe: _Probe, wanted: np.ndarray, size: int | None, seek: bool) -> list[np.ndarray]:
    """The wanted frames; fewer where the stream ends before. Without `seek` frames are counted from the start."""
    width, height = _scaled(probe.width, probe.height, size)
    container, stream, *_ = _open(path)
    found, position, frame = [], -1, None
    with container:
        frames = _decoded(container, stream)
        for index in wanted:
            if seek:
                key = probe.keys[np.searchsorted(probe.keys, probe.times[index], side="right") - 1]
                if position < np.searchsorted(probe.times, key) - 1:
                    container.seek(int(key), stream=stream)
                    frames = _decoded(container, stream)
            while position < index:
                frame = next(frames, None)
                if frame is None:
                    return found
                position = position + 1 if not seek else int(np.searchsorted(probe.times, frame.pts))
            if seek and position != index:
                raise _InexactSeek
            picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
            found.append(np.ascontiguousarray(np.rot90(picture, probe.rotation)))
    return found


def _read(path: str, probe: _Probe, wanted: np.ndarray, size: int | None, decoder: str | None):
    if decoder is None and probe.plain:
        # decord raises many kinds of errors; the file goes to the other decoder whichever it is
        with contextlib.suppress(Exception):
            return "decord", _by_decord(path, probe, wanted, size)
    if len(probe.keys):
        with contextlib.suppress(_InexactSeek):
            return "pyav", _by_pyav(path, probe, wanted, size, seek=True)
    return "pyav", _by_pyav(path, probe, wanted, size, seek=False)


def _work(job: Job, decoder: str | None) -> tuple[dict, list[bytes]]:
    import simplejpeg

    path = os.path.abspath(job.path)
    if not os.path.getsize(path):
        raise DecodeError("empty file")
    probe = _probe(path)
    wanted = sample(job.sampling, probe.count, job.count)
    if len(wanted) < probe.count and len(probe.times):
        wanted = _timeline(probe.times)[wanted]
    used, frames = _read(path, probe, wanted, job.size, decoder)
    width, height = (probe.width, probe.height) if probe.rotation % 2 == 0 else (probe.height, probe.width)
    damage = probe.damage
    if len(frames) < len(wanted):
        damage = f"damaged: {len(frames)} of {len(wanted)} frames could be decoded"
    if job.quality is None:
        blobs = [frame.tobytes() for frame in frames]
    else:
        blobs = [simplejpeg.encode_jpeg(frame, quality=job.quality) for frame in frames]
    about = {
        "fps": round(probe.fps, 4),
        "duration": round(probe.duration, 4),
        "width": width,
        "height": height,
    }
    shape = list(frames[0].shape) if len(frames) else None
    return _info(frames=len(blobs), shape=shape, decoder=used, reason=damage, **about), blobs


def _answer(request: dict) -> tuple[dict, list[bytes]]:
    decoder = request.pop("decoder")
    try:
        return _work(Job(**request), decoder)
    except DecodeError as error:
        return _info(reason=str(error)), []
    except Exception as error:  # whatever a library makes of a hostile file is that file's reason
        text = " ".join(str(error).replace(request["path"], "").split())
        return _info(reason=f"{type(error).__name__}: {text}"[:200]), []


def _serve(connection: Connection, timeout: float) -> None:
    """Answer jobs until the other side goes. SIGALRM, at its default, ends the process in the middle of anything."""
    import av  # noqa: F401  imported here so that the first file's time is its own
    import decord  # noqa: F401
    import simplejpeg  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then closes the pool
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    connection.send_bytes(b"ready")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, timeout)
            info, blobs = _answer(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(info).encode())
            for blob in blobs:
                connection.send_bytes(blob)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
