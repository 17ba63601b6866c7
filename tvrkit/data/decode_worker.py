"""What reads one video file, in a process of its own.

decord reads what it is right about: plain MP4, Matroska and AVI whose header and packets agree.
PyAV reads the rest (MPEG-TS, whose frames decord mixes up; wrong frame counts, at which decord
hangs; rotation; 10-bit, 4:4:4 and odd sizes; several video streams), and whatever decord fails on
or hangs at.

Run as a program, this file is the worker. It imports nothing heavy: it starts in a third of a
second, holds no torch, and costs little to kill and replace.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from tvrkit.data.sampling import sample

BEST, SECOND = (
    "best",
    "pyav",
)  # the decoder that fits the file; the one that is left when that one died
READY = b"ready"
DECORD_FORMATS = {"mov", "matroska", "avi"}
DECORD_PIXELS = {"yuv420p", "yuvj420p"}
REFUSED_FORMATS = {
    "hls",
    "dash",
    "concat",
    "sdp",
    "tty",
    "image2",
}  # lists of files, addresses, text, stills
MEMORY_LIMIT = (
    4 << 30
)  # bytes of address space: a header that claims absurd sizes costs its worker only
FRAMES_PER_SECOND = 200  # a long video's time limit grows by a second per so many frames
BATCH = 8  # frames decord holds at a time


@dataclass(frozen=True)
class Job:
    """One file to read.

    Attributes:
        count: frames, chosen by `sampling` over the video's time.
        size: short side that larger videos are scaled down to, or None.
        quality: of JPEG files, 1 to 100; None for raw frames.
    """

    path: str
    count: int
    sampling: str = "uniform"
    size: int | None = None
    quality: int | None = None


def about(**known) -> dict:
    """What is told of a file; see `tvrkit.data.decoders.DecodePool.run`."""
    nothing = {"frames": 0, "shape": None, "fps": 0.0, "duration": 0.0, "width": 0, "height": 0}
    return {**nothing, "decoder": "", "reason": "", **known}


class _Unreadable(Exception):
    """The reason why a file gives no frames, or why a decoder is not to be believed."""


@dataclass(frozen=True)
class _Probe:
    """What the packets of a file say, after decoding only its first frame."""

    times: (
        np.ndarray
    )  # (N,) int64, when each frame is shown, rising; (0,) where the file does not say clearly
    keys: np.ndarray  # those of `times` that decoding can start at
    count: int  # frames there are
    base: float  # seconds per unit of `times`
    fps: float
    width: int
    height: int
    turns: int  # quarter turns counter-clockwise that bring the picture upright
    plain: bool  # decord is right about such files
    damage: str


def _open(path: str):
    import av

    container = av.open(path, options={"protocol_whitelist": "file"})
    names = set(container.format.name.split(","))
    if names & REFUSED_FORMATS or any(name.endswith("_pipe") for name in names):
        raise _Unreadable(f"no video ({container.format.long_name})")
    streams = [
        s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise _Unreadable("no video stream" + (", only audio" if container.streams.audio else ""))
    streams[0].codec_context.thread_count = 1
    return container, streams[0]


def _packets(container, stream) -> Iterator:
    """The packets up to the first that can't be read."""
    import av

    with contextlib.suppress(av.error.FFmpegError):
        yield from container.demux(stream)


def _decoded(container, stream) -> Iterator:
    """The frames that can be decoded; broken packets are passed over."""
    import av

    for packet in _packets(container, stream):
        with contextlib.suppress(av.error.FFmpegError):
            yield from packet.decode()


def _probe(path: str) -> _Probe:
    container, stream = _open(path)
    with container:
        # (time, can start here, hidden by an edit list) of each packet; the last one demuxed is an
        # empty mark
        packets = [
            (p.pts if p.pts is not None else p.dts, p.is_keyframe, p.is_discard)
            for p in _packets(container, stream)
            if p.size
        ]
        promised, base = stream.frames, float(stream.time_base)
        fps = float(stream.average_rate or stream.base_rate or 0) or 25.0
        ordinary = bool(DECORD_FORMATS & set(container.format.name.split(",")))
        ordinary &= len(container.streams.video) == 1
    container, stream = _open(path)
    with container:
        first = next(_decoded(container, stream), None)
    if first is None:
        raise _Unreadable("no frame can be decoded" if packets else "no frames")
    shown = [packet for packet in packets if not packet[2]] or packets
    times, keys, clear = _times(shown)
    if len(times) > 1:
        fps = (len(times) - 1) / ((times[-1] - times[0]) * base)
    ordinary &= clear and promised in (0, len(packets)) and len(shown) == len(packets)
    ordinary &= first.format.name in DECORD_PIXELS and not first.rotation
    ordinary &= first.width % 2 == first.height % 2 == 0
    damage = (
        f"cut off: {len(packets)} of {promised} frames are there" if promised > len(packets) else ""
    )
    turns = round(first.rotation / 90) % 4
    return _Probe(
        times, keys, len(shown), base, fps, first.width, first.height, turns, ordinary, damage
    )


def _times(packets: list[tuple]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Times of all frames, those of key frames, and whether each frame has a time of its own."""
    stamps = [stamp for stamp, *_ in packets]
    times = np.unique([stamp for stamp in stamps if stamp is not None]).astype(np.int64)
    if len(times) < len(stamps):
        return np.empty(0, np.int64), np.empty(0, np.int64), False
    return times, np.sort(np.array([stamp for stamp, key, _ in packets if key], np.int64)), True


def _timeline(times: np.ndarray) -> np.ndarray:
    """(N,) the frame shown in the middle of each of N equal spans of time: 0..N-1 at a constant
    rate."""
    step = (times[-1] - times[0]) / (len(times) - 1)
    middle = times[0] + (np.arange(len(times)) + 0.5) * step
    return np.searchsorted(times, middle, side="right") - 1


def _scale(frame, probe: _Probe, size: int | None) -> np.ndarray:
    """An `av.VideoFrame` as (H, W, 3) uint8 RGB with a short side of at most `size`."""
    scale = 1.0 if size is None else min(1.0, size / min(probe.width, probe.height))
    width, height = (max(1, round(side * scale)) for side in (probe.width, probe.height))
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")


def _by_decord(
    path: str, probe: _Probe, wanted: np.ndarray, size: int | None
) -> Iterator[np.ndarray]:
    import av
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    if len(reader) != probe.count:
        raise _Unreadable(f"decord counts {len(reader)} frames, the file has {probe.count}")
    starts = reader.get_frame_timestamp(wanted)[:, 0]
    if np.abs(starts - (probe.times[wanted] - probe.times[0]) * probe.base).max() > 0.5 / probe.fps:
        raise _Unreadable("decord and the file disagree about time")
    for start in range(0, len(wanted), BATCH):
        for picture in reader.get_batch(wanted[start : start + BATCH]).asnumpy():
            # not by decord itself, which fails at many widths
            yield _scale(av.VideoFrame.from_ndarray(picture), probe, size)


def _by_pyav(
    path: str, probe: _Probe, wanted: np.ndarray, size: int | None, seek: bool
) -> Iterator[np.ndarray]:
    """The wanted frames, fewer where the stream ends early. Without `seek` they are counted from
    the start."""
    container, stream = _open(path)
    position = -1
    with container:
        frames = _decoded(container, stream)
        for index in wanted:
            key = (
                probe.keys[np.searchsorted(probe.keys, probe.times[index], side="right") - 1]
                if seek
                else None
            )
            if seek and position < np.searchsorted(probe.times, key) - 1:
                container.seek(int(key), stream=stream)
                frames = _decoded(container, stream)
            while position < index:
                frame = next(frames, None)
                if frame is None:
                    return
                position = int(np.searchsorted(probe.times, frame.pts)) if seek else position + 1
            if seek and position != index:
                raise _Unreadable("the frame that was sought did not come")
            yield np.ascontiguousarray(np.rot90(_scale(frame, probe, size), probe.turns))


def _read(
    job: Job, path: str, probe: _Probe, wanted: np.ndarray, decoder: str
) -> tuple[str, list, list[bytes]]:
    """The decoder that was right, the frames' shape, and the frames."""
    import simplejpeg

    def collect(frames: Iterator[np.ndarray]) -> tuple[list, list[bytes]]:
        shape, blobs = None, []
        for frame in frames:
            shape = list(frame.shape)
            blobs.append(
                frame.tobytes()
                if job.quality is None
                else simplejpeg.encode_jpeg(frame, quality=job.quality)
            )
        return shape, blobs

    # whatever goes wrong with the faster ways, the next one has its turn
    if decoder == BEST and probe.plain:
        with contextlib.suppress(Exception):
            return "decord", *collect(_by_decord(path, probe, wanted, job.size))
    if len(probe.keys):
        with contextlib.suppress(Exception):
            return "pyav", *collect(_by_pyav(path, probe, wanted, job.size, seek=True))
    return "pyav", *collect(_by_pyav(path, probe, wanted, job.size, seek=False))


def _work(job: Job, decoder: str, timeout: float) -> tuple[dict, list[bytes]]:
    path = os.path.abspath(job.path)  # so that no name can be taken for an address
    if not os.path.getsize(path):
        raise _Unreadable("empty file")
    probe = _probe(path)
    signal.setitimer(signal.ITIMER_REAL, timeout + probe.count / FRAMES_PER_SECOND)
    wanted = sample(job.sampling, probe.count, job.count)
    if len(wanted) < probe.count and len(probe.times):
        wanted = _timeline(probe.times)[wanted]
    used, shape, blobs = _read(job, path, probe, wanted, decoder)
    lost = (
        f"damaged: {len(blobs)} of {len(wanted)} frames can be decoded"
        if len(blobs) < len(wanted)
        else ""
    )
    width, height = (probe.height, probe.width) if probe.turns % 2 else (probe.width, probe.height)
    known = {
        "fps": round(probe.fps, 4),
        "duration": round(probe.count / probe.fps, 4),
        "reason": "; ".join(filter(None, (probe.damage, lost))),
    }
    return about(
        frames=len(blobs), shape=shape, decoder=used, width=width, height=height, **known
    ), blobs


def _answer(request: dict, timeout: float) -> tuple[dict, list[bytes]]:
    import av

    decoder = request.pop("decoder")
    try:
        return _work(Job(**request), decoder, timeout)
    except _Unreadable as error:
        return about(reason=str(error)), []
    except (av.error.FFmpegError, OSError) as error:
        return about(reason=f"can't be read: {error.strerror}"), []
    except Exception as error:  # whatever a library makes of a hostile file is that file's reason
        return about(
            reason=f"can't be read: {type(error).__name__} {' '.join(str(error).split())}"[:200]
        ), []


def _serve(connection: Connection, timeout: float) -> None:
    """Answer jobs until the other side goes. SIGALRM, at its default, ends the process whatever it
    does."""
    import av  # noqa: F401  imported here so that the first file's time is its own
    import decord  # noqa: F401
    import simplejpeg  # noqa: F401

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the main process, which then closes the pool
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    connection.send_bytes(READY)
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno()
    )  # what libraries say about broken files
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, timeout)
            info, blobs = _answer(request, timeout)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(info).encode())
            for blob in blobs:
                connection.send_bytes(blob)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
