"""What reads one video file, in a process of its own: the program that `tvrkit.data.decoders` runs.

It imports nothing heavy: it starts in a third of a second, holds no torch, and costs little to kill
and replace.
"""

import contextlib
import ctypes
import io
import itertools
import json
import math
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

import av
import numpy as np
import simplejpeg

from tvrkit.data.decoders import DECORD, MAX_PIXELS, READY, FrameSettings, Result, VideoInfo
from tvrkit.data.sampling import sample

try:
    import decord
except ImportError:  # there is no wheel of it for this machine
    decord = None

# lists of files, addresses, text, stills
REFUSED_FORMATS = {"hls", "dash", "concat", "sdp", "tty", "image2"}
# types of NAL units: of a picture, and of one after which no frame refers to an earlier one
SLICE, IDR = 1, 5
# a long video's time limit grows by a second per so many frames and per so many pixels, and by none
# per so many bytes that it has not: a drawing of 50 kB can claim 10^11 pixels
FRAMES_PER_SECOND, PIXELS_PER_SECOND, BYTES_PER_SECOND = 200, 1e8, 2e4
BATCH = 8  # frames decord holds at a time
# bytes of address space that a worker may add to those of its libraries
MEMORY_LIMIT = 3 << 29
LOG_LIMIT = 1 << 16  # bytes of all that is written to files: what libraries complain of
NO_NEW_PRIVS, NEW_NET, NEW_USER = 38, 0x40000000, 0x10000000  # of Linux's prctl.h and sched.h


class Unreadable(Exception):
    """The reason why a file gives no frames, or why a decoder is not to be believed."""


class Clock(NamedTuple):
    """When each frame is shown.

    Attributes:
        times: (N,) int64, rising.
        base: seconds per unit of `times`.
        fps: frames a second, on average.
        clear: the file says so; else frames are counted, at a constant rate.
    """

    times: np.ndarray
    base: float
    fps: float
    clear: bool

    @classmethod
    def read(cls, stamps: list[int | None], base: float, fps: float) -> Self:
        """Of the frames' stamps; unclear where not every frame has one of its own."""
        known = sorted({stamp for stamp in stamps if stamp is not None})
        if len(known) < len(stamps):
            return cls(np.arange(len(stamps)), 1 / fps, fps, False)
        if len(known) > 1:
            fps = (len(known) - 1) / ((known[-1] - known[0]) * base)
        return cls(np.array(known, np.int64), base, fps, True)

    def choose(self, settings: FrameSettings) -> np.ndarray:
        """(F,) frames to take: the sampling's, of those in the window, spread over their time.

        Raises:
            Unreadable: no frame is in the window.
        """
        start, end = settings.window or (0.0, math.inf)
        seconds = np.round((self.times - self.times[:1]) * self.base, 6)
        inside = np.flatnonzero((start <= seconds) & (seconds < end))
        if not len(inside):
            last = f"the last is at {seconds[-1]:g} s" if len(seconds) else "there is none"
            raise Unreadable(f"no frame can be decoded from {start:g} to {end:g} s: {last}")
        wanted = sample(settings.sampling, len(inside), settings.frames)
        if len(wanted) < len(inside):
            # those shown in the middle of as many equal spans of time as there are frames
            times = self.times[inside]
            step = (times[-1] - times[0]) / (len(times) - 1)
            wanted = np.searchsorted(times, times[0] + (wanted + 0.5) * step, side="right") - 1
        return inside[wanted]


class Video:
    """What a file says of itself, after decoding only its first frame.

    Attributes:
        formats: names of the container's format.
        codec: name of the stream's.
        streams: video streams it has; the first is read.
        promised: frames that the header counts, 0 where it does not.
        stored: frames that there are; an edit list may hide some of them.
        clock: of those that are shown.
        closed: proven to have key frames that stand alone, the first frame among them.
        pixels: name of the pixel format.
        damage: what is wrong with it, before its frames are decoded.
        scale: a frame to a size and format; FFmpeg's filters are made once for all of them.
        turn: (2, 2) int, the rows are where x and y of the picture go, so that it stands upright.

    Raises:
        Unreadable: no video, it is too large, or no frame can be decoded.
    """

    def __init__(self, path: str):
        self.path, self.scale = path, av.video.reformatter.VideoReformatter().reformat
        packets: list[tuple] = []  # (time, hidden by an edit list, proven)
        reached = 0.0
        container, stream = _open(path)
        with container:
            # decord seeks to what the container calls key frames, and FFmpeg knows some better
            index = {entry.timestamp: entry.is_keyframe for entry in stream.index_entries}
            for packet in _packets(container):
                time = packet.dts if packet.pts is None else packet.pts
                reached = max(reached, (time or 0) * float(packet.time_base))
                if packet.stream_index == stream.index:
                    key = not packets or index.get(packet.dts, packet.is_keyframe)
                    packets.append((time, packet.is_discard, _is_proven(packet, stream, key)))
            self.formats = container.format.name
            self.codec = stream.codec_context.codec.canonical_name
            self.streams = len(container.streams.video)
            self.promised, self.stored = stream.frames, len(packets)
            fps = float(stream.average_rate or stream.base_rate or 0) or 25.0
            base, lasts = float(stream.time_base), (container.duration or 0) / 1e6
        shown = [packet for packet in packets if not packet[1]] or packets
        self.clock = Clock.read([time for time, *_ in shown], base, fps)
        self.closed = all(proven for *_, proven in shown)
        if (first := next(_decoded(path, []), None)) is None:
            raise Unreadable("no frame can be decoded" if packets else "no frames")
        self.width, self.height, self.pixels = first.width, first.height, first.format.name
        self.damage = self._cut_off(reached + 2 / fps, lasts)
        self.interlaced, turn = first.interlaced_frame, _turn(first)
        self.turn = np.eye(2, dtype=int) if turn is None else turn
        if turn is None:
            self.damage += ["the header asks for a turn by other than quarters: not applied"]

    def _cut_off(self, reached: float, lasts: float) -> list[str]:
        """What the header promises, in frames or in seconds, and is not there."""
        if self.promised > self.stored:  # an edit list may hide them
            container, stream = _open(self.path, ignore_editlist="1")
            with container:
                self.stored = sum(1 for _ in _packets(container, stream))
        if self.promised > self.stored:
            return [f"cut off: {self.stored} of {self.promised} frames are there"]
        short = not self.promised and reached < 0.9 * lasts
        return [f"cut off: {reached:.1f} of {lasts:.1f} s are there"] if short else []


def _doubt(video: Video, said: list[tuple]) -> str | None:
    """Why decord is not asked, if so.

    Right is what decoding from the first frame on gives. decord seeks, and then takes whatever
    comes for the frame it wants: frames around the key frames of an open GOP and those of an intra
    refresh are others or broken, and B-frames of MPEG-2 and MPEG-4 are their neighbours
    (`tests/data/codecs.py` has the table). So it reads undamaged H.264 with IDR key frames only, in
    a container whose index says where each frame is.
    """
    doubts = {
        "it is not installed": decord is None,
        f"the codec is {video.codec}": video.codec != "h264",
        f"the container is {video.formats}": "mp4" not in video.formats,
        "the file has several video streams": video.streams > 1,
        "not every frame has a time of its own": not video.clock.clear,
        "the header does not count the frames there are": video.promised != video.stored,
        "an edit list hides frames": len(video.clock.times) < video.stored,
        "open GOP or intra refresh: not every key frame stands alone": not video.closed,
        f"the pixels are {video.pixels}": video.pixels != "yuv420p",
        "the frames are interlaced": video.interlaced,
        "the picture is to be turned": (video.turn != np.eye(2)).any(),
        "the file is damaged": bool(video.damage or _complaints(said, video)),
        "width or height is odd": video.width % 2 + video.height % 2 > 0,
    }
    return next((why for why, holds in doubts.items() if holds), None)


def read(path: str, settings: FrameSettings, timeout: float, asks: Callable[[], None]) -> Result:
    """The frames of one file; the kernel's alarm is set again when its length is known. `asks` is
    called before decord is.

    Raises:
        Unreadable, OSError, or whatever a library makes of a hostile file.
    """
    path = os.path.abspath(path)  # so that no name can be taken for an address
    if not (size := os.path.getsize(path)):
        raise Unreadable("empty file")
    with av.logging.Capture() as said:
        video = Video(path)
        per_frame = 1 / FRAMES_PER_SECOND + video.width * video.height / PIXELS_PER_SECOND
        more = min(len(video.clock.times) * per_frame, size / BYTES_PER_SECOND)
        signal.setitimer(signal.ITIMER_REAL, timeout + more)
        clock, damage, decoder = video.clock, video.damage, "decord"
        why = "asked for" if settings.decoder == "pyav" else _doubt(video, said)
        if not why:
            asks()
            try:
                frames = _by_decord(video, settings)
            except Unreadable as error:
                why = f"decord fails: {error}"
            except Exception:  # whatever it makes of a file
                why = "decord fails: it can't read every frame"
        if why and settings.decoder == "decord":
            raise Unreadable(f"decord is not to be trusted with this file: {why}")
        if why:
            (clock, frames, broken), decoder = _by_counting(video, settings), "pyav"
            damage += [f"damaged: {broken} of {video.stored} frames are broken"] * (broken > 0)
    damage = damage or _complaints(said, video)[:1]
    sides = (video.width, video.height) if video.turn[0, 0] else (video.height, video.width)
    fps, duration = round(clock.fps, 4), round(len(clock.times) / clock.fps, 4)
    why = why or "H.264, every key frame stands alone"
    return VideoInfo(len(frames), fps, duration, *sides, decoder, why, "; ".join(damage)), frames


def _complaints(said: list[tuple], video: Video) -> list[str]:
    """FFmpeg's errors and its decoder's warnings: the only sign of a concealed picture."""
    complaints = [each for each in said if each[0] <= av.logging.ERROR or each[1] == video.codec]
    return [f"damaged: {name}: {' '.join(text.split())}"[:200] for _, name, text in complaints]


def _by_decord(video: Video, settings: FrameSettings) -> list[bytes]:
    """The frames as files. decord conceals what is damaged, and tells of it only on stderr."""
    wanted, times = video.clock.choose(settings), video.clock.times
    log = sys.stderr.fileno()
    os.ftruncate(log, 0)
    os.lseek(log, 0, os.SEEK_SET)
    reader = decord.VideoReader(video.path, num_threads=1)
    if len(reader) != len(times):
        raise Unreadable(f"it counts {len(reader)} frames, the file has {len(times)}")
    starts = reader.get_frame_timestamp(wanted)[:, 0]
    errors = np.abs(starts - (times[wanted] - times[0]) * video.clock.base)
    if errors.max() > 0.5 / video.clock.fps:
        raise Unreadable("its times are not the file's")
    files: list[bytes] = []
    for batch in np.split(wanted, range(BATCH, len(wanted), BATCH)):
        pictures = map(av.VideoFrame.from_ndarray, reader.get_batch(batch).asnumpy())
        files += [_encode(picture, video, settings) for picture in pictures]
    if os.path.getsize(log):
        raise Unreadable("it complains")
    return files


def _by_counting(video: Video, settings: FrameSettings) -> tuple[Clock, list[bytes], int]:
    """All frames from the first on: their times, those taken as files, and how many are broken.

    Which are taken is first chosen by the packets' times; where other frames than those come out,
    it is chosen again by theirs.
    """
    clock = video.clock
    for _ in range(2):
        wanted, stamps = clock.choose(settings).tolist(), list[int | None]()
        files, lost = list[bytes](), list[int | None]()
        for position, frame in enumerate(_decoded(video.path, lost)):
            stamps.append(frame.pts)
            if times := wanted.count(position):
                files += [_encode(frame, video, settings)] * times
        if stamps != sorted(stamp for stamp in stamps if stamp is not None):
            stamps = [None for _ in stamps]
        clock = Clock.read(stamps, video.clock.base, video.clock.fps)
        if np.array_equal(clock.choose(settings), wanted):
            return clock, files, max(len(lost), len(video.clock.times) - len(stamps))
    raise Unreadable("other frames come each time it is decoded")


def _encode(frame: av.VideoFrame, video: Video, settings: FrameSettings) -> bytes:
    """A JPEG or .npy file of the frame, upright, with a short side of at most `short_side`."""
    short_side = min(video.width, video.height)
    scale = min(1.0, (settings.short_side or short_side) / short_side)
    w, h = (max(1, round(side * scale)) for side in (video.width, video.height))
    # not by decord, which fails at many widths
    picture = video.scale(frame, w, h, "rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
    if not video.turn[0, 0]:
        picture = picture.swapaxes(0, 1)
    to_x, to_y = video.turn.sum(0)
    upright = np.ascontiguousarray(picture[::to_y, ::to_x])
    if settings.quality:
        return simplejpeg.encode_jpeg(upright, settings.quality, colorsubsampling=settings.chroma)
    file = io.BytesIO()
    np.save(file, upright)
    return file.getvalue()


def _turn(frame: av.VideoFrame) -> np.ndarray | None:
    """`Video.turn` of the frame's display matrix: 16.16 fixed point, (x, y, 1) times it."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=int)
    matrix = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2] / (1 << 16)
    turn = np.rint(matrix).astype(int)
    quarters = np.allclose(matrix, turn, atol=0.01) and np.array_equal(turn @ turn.T, np.eye(2))
    return turn if quarters else None


def _open(path: str, **options: str) -> tuple:
    """PyAV's container, and the stream in it that is read."""
    container = av.open(path, options={"protocol_whitelist": "file", **options})
    names = container.format.name.split(",")
    if REFUSED_FORMATS & set(names) or any(name.endswith("_pipe") for name in names):
        raise Unreadable(f"no video ({container.format.long_name})")
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise Unreadable("no video stream" + (", only audio" if container.streams.audio else ""))
    coder = streams[0].codec_context
    if coder.width * coder.height > MAX_PIXELS:
        size = f"{coder.width} x {coder.height} pixels"
        raise Unreadable(f"too large: {size}, expected at most {MAX_PIXELS:,}")
    coder.thread_count = 1
    return container, streams[0]


def _packets(container, *streams) -> Iterator:
    """The packets of these streams, or of all, up to the first that can't be read."""
    with contextlib.suppress(av.error.FFmpegError):
        yield from (packet for packet in container.demux(*streams) if packet.size)


def _decoded(path: str, lost: list) -> Iterator:
    """The frames that can be decoded; broken packets and pictures are put into `lost`."""
    container, stream = _open(path)
    with container:
        for packet in itertools.chain(_packets(container, stream), [None]):
            try:
                # None has the decoder give what it holds back
                for frame in stream.codec_context.decode(packet):
                    if frame.is_corrupt:
                        lost.append(frame.pts)
                    yield frame
            except av.error.FFmpegError:
                lost.append(None)


def _is_proven(packet: av.Packet, stream: av.VideoStream, key: bool) -> bool:
    """Whether it is proven to hold a picture of H.264; of a key frame, one that stands alone."""
    about, data, place = stream.codec_context.extradata or b"", bytes(packet), 0
    if stream.codec_context.name != "h264" or about[:1] != b"\1":  # units after their lengths
        return False
    length, kinds = (about[4] & 3) + 1, set()
    while place + length < len(data):
        kinds.add(data[place + length] & 31)
        place += length + int.from_bytes(data[place : place + length])
    return place == len(data) and bool(kinds & ({IDR} if key else {IDR, SLICE}))


def answer(path: str, *how: Any) -> Result:
    """`read`, with whatever goes wrong as the file's reason."""
    try:
        return read(path, *how)
    except Unreadable as error:
        reason = str(error)
    except (av.error.FFmpegError, OSError) as error:
        reason = f"can't be read: {error.strerror}"
    except Exception as error:  # whatever a library makes of a hostile file
        reason = f"can't be read: {type(error).__name__} {' '.join(str(error).split())}"[:200]
    return VideoInfo(reason=reason), []


def confine() -> None:
    """Give up what decoding does not need: more rights, the network, files to write, memory.

    On Linux; each as far as the kernel grants it.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        kernel = ctypes.CDLL(None)
        kernel.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
        if kernel.unshare(NEW_NET):  # without rights of one's own, in a world of one's own
            kernel.unshare(NEW_NET | NEW_USER)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_LIMIT, LOG_LIMIT))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def serve(connection: Connection, timeout: float) -> None:
    """Answer until the other side goes. SIGALRM, at its default, ends the process whatever it
    does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    confine()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)  # else the next file's first complaint may be left out
    if decord:  # below INFO it conceals a part of a picture without a word
        decord.logging.set_level(decord.logging.INFO)
    connection.send_bytes(READY)
    asks = partial(connection.send_bytes, DECORD)
    with tempfile.TemporaryFile() as log:  # what libraries say about broken files
        os.dup2(log.fileno(), sys.stderr.fileno())
    with contextlib.suppress(EOFError, OSError):
        while True:
            path, settings = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, timeout)
            info, frames = answer(path, FrameSettings(**settings), timeout, asks)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for message in (json.dumps(vars(info)).encode(), *frames):
                connection.send_bytes(message)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
