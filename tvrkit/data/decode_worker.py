"""What reads one video file, in a process of its own: the program that `tvrkit.data.decoders` runs.

It imports nothing heavy: it starts in a third of a second, holds no torch, and costs little to kill
and replace.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import av
import numpy as np
import simplejpeg

from tvrkit.data.decoders import READY, FrameSettings, Result, VideoInfo
from tvrkit.data.sampling import sample

try:
    import decord
except ImportError:  # there is no wheel of it for this machine
    decord = None

DECORD_FORMATS = {"mov", "matroska", "avi"}
DECORD_PIXELS = {"yuv420p", "yuvj420p"}
# lists of files, addresses, text, stills
REFUSED_FORMATS = {"hls", "dash", "concat", "sdp", "tty", "image2"}
# bytes of address space: a header that claims absurd sizes costs its worker only
MEMORY_LIMIT = 4 << 30
FRAMES_PER_SECOND = 200  # a long video's time limit grows by a second per so many frames
BATCH = 8  # frames decord holds at a time


class Unreadable(Exception):
    """The reason why a file gives no frames, or why a decoder is not to be believed."""


class Video:
    """What a file says of itself, after decoding only its first frame.

    Attributes:
        formats: names of the container's format.
        streams: video streams it has; the first is read.
        promised: frames that the header counts, 0 where it does not.
        stored: frames that there are, `count` those of them that are shown.
        times: (N,) int64, when each frame is shown, rising; (0,) where the file does not say
            clearly.
        keys: those of `times` that decoding can start at.
        base: seconds per unit of `times`.
        pixels: name of the pixel format.
        rotation: degrees counter-clockwise that bring the picture upright, `turns` in quarters.

    Raises:
        Unreadable: no video, or no frame can be decoded.
    """

    def __init__(self, path: str):
        self.path = path
        container, stream = _open(path)
        with container:
            # (time, can start here, hidden by an edit list); the last packet is an empty mark
            packets = [
                (p.dts if p.pts is None else p.pts, p.is_keyframe, p.is_discard)
                for p in _packets(container, stream)
                if p.size
            ]
            self.formats = set(container.format.name.split(","))
            self.streams = len(container.streams.video)
            self.promised = stream.frames
            self.base = float(stream.time_base)
            self.fps = float(stream.average_rate or stream.base_rate or 0) or 25.0
        container, stream = _open(path)
        with container:
            first = next(_decoded(container, stream), None)
        if first is None:
            raise Unreadable("no frame can be decoded" if packets else "no frames")
        self.width, self.height, self.pixels = first.width, first.height, first.format.name
        self.rotation, self.turns = first.rotation, round(first.rotation / 90) % 4
        shown = [packet for packet in packets if not packet[2]] or packets
        self.stored, self.count = len(packets), len(shown)
        self.times, self.keys = _times(shown)
        if len(self.times) > 1:
            self.fps = (self.count - 1) / ((self.times[-1] - self.times[0]) * self.base)


def choose_decoder(wanted: str, video: Video) -> str:
    """Which decoder reads this file: decord where it is right about it, unless PyAV is wanted.

    Raises:
        Unreadable: decord is wanted, but may be wrong about the file; the message says why.
    """
    doubts = {
        "it is not installed": decord is None,
        "it mixes up the frames of such containers": not DECORD_FORMATS & video.formats,
        "the file has several video streams": video.streams > 1,
        "not every frame has a time of its own": not len(video.times),
        "the header counts other frames than there are": video.promised not in (0, video.stored),
        "an edit list hides frames": video.count < video.stored,
        f"the pixels are {video.pixels}": video.pixels not in DECORD_PIXELS,
        "the picture is to be rotated": video.rotation != 0,
        "width or height is odd": video.width % 2 + video.height % 2 > 0,
    }
    doubt = next((why for why, holds in doubts.items() if holds), None)
    if wanted == "decord" and doubt:
        raise Unreadable(f"decord is not to be trusted with this file: {doubt}")
    return "pyav" if wanted == "pyav" or doubt else "decord"


def read(path: str, settings: FrameSettings, timeout: float) -> Result:
    """The frames of one file; the kernel's alarm is set again when its length is known.

    Raises:
        Unreadable, OSError, or whatever a library makes of a hostile file.
    """
    path = os.path.abspath(path)  # so that no name can be taken for an address
    if not os.path.getsize(path):
        raise Unreadable("empty file")
    video = Video(path)
    signal.setitimer(signal.ITIMER_REAL, timeout + video.count / FRAMES_PER_SECOND)
    wanted = sample(settings.sampling, video.count, settings.frames)
    if len(wanted) < video.count and len(video.times):
        wanted = _timeline(video.times)[wanted]
    decoder, frames = _decode(video, wanted, settings)
    damage = []
    if video.promised > video.stored:
        damage.append(f"cut off: {video.stored} of {video.promised} frames are there")
    if len(frames) < len(wanted):
        damage.append(f"damaged: {len(frames)} of {len(wanted)} frames can be decoded")
    fps, duration = round(video.fps, 4), round(video.count / video.fps, 4)
    size = (video.height, video.width) if video.turns % 2 else (video.width, video.height)
    return VideoInfo(len(frames), fps, duration, *size, decoder, "; ".join(damage)), frames


def _decode(video: Video, wanted: np.ndarray, settings: FrameSettings) -> tuple[str, list[bytes]]:
    """The decoder that was right, and the frames as files."""

    def files(way) -> list[bytes]:
        return [_encode(frame, video, settings) for frame in way(video, wanted)]

    decoder = choose_decoder(settings.decoder, video)
    if settings.decoder == "decord":
        return "decord", files(_by_decord)
    # whatever goes wrong with the faster ways, the next one has its turn
    if decoder == "decord":
        with contextlib.suppress(Exception):
            return "decord", files(_by_decord)
    if len(video.keys):
        with contextlib.suppress(Exception):
            return "pyav", files(_by_seeking)
    return "pyav", files(_by_counting)


def _by_decord(video: Video, wanted: np.ndarray) -> Iterator:
    reader = decord.VideoReader(video.path, num_threads=1)
    if len(reader) != video.count:
        raise Unreadable(f"decord counts {len(reader)} frames, the file has {video.count}")
    starts = reader.get_frame_timestamp(wanted)[:, 0]
    errors = np.abs(starts - (video.times[wanted] - video.times[0]) * video.base)
    if errors.max() > 0.5 / video.fps:
        raise Unreadable("decord and the file disagree about time")
    for start in range(0, len(wanted), BATCH):
        for picture in reader.get_batch(wanted[start : start + BATCH]).asnumpy():
            yield av.VideoFrame.from_ndarray(picture)


def _by_seeking(video: Video, wanted: np.ndarray) -> Iterator:
    """From the key frame before each; fewer frames where the stream ends early."""
    container, stream = _open(video.path)
    with container:
        position, frames = -1, _decoded(container, stream)
        for index in wanted:
            key = video.keys[np.searchsorted(video.keys, video.times[index], side="right") - 1]
            if position < np.searchsorted(video.times, key) - 1:
                container.seek(int(key), stream=stream)
                frames = _decoded(container, stream)
            while position < index:
                frame = next(frames, None)
                if frame is None:
                    return
                position = int(np.searchsorted(video.times, frame.pts))
            if position != index:
                raise Unreadable("the frame that was sought did not come")
            yield frame


def _by_counting(video: Video, wanted: np.ndarray) -> Iterator:
    """Every frame from the start on; fewer frames where the stream ends early."""
    container, stream = _open(video.path)
    with container:
        for position, frame in enumerate(_decoded(container, stream)):
            yield from [frame] * np.count_nonzero(wanted == position)
            if position >= wanted[-1]:
                return


def _encode(frame: av.VideoFrame, video: Video, settings: FrameSettings) -> bytes:
    """A JPEG or .npy file of the frame, upright, with a short side of at most `short_side`."""
    short_side = min(video.width, video.height)
    scale = min(1.0, (settings.short_side or short_side) / short_side)
    width, height = (max(1, round(side * scale)) for side in (video.width, video.height))
    # not by decord, which fails at many widths
    picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
    upright = np.ascontiguousarray(np.rot90(picture, video.turns))
    if settings.quality:
        return simplejpeg.encode_jpeg(upright, quality=settings.quality)
    file = io.BytesIO()
    np.save(file, upright)
    return file.getvalue()


def _open(path: str) -> tuple:
    """PyAV's container, and the stream in it that is read."""
    container = av.open(path, options={"protocol_whitelist": "file"})
    names = container.format.name.split(",")
    if REFUSED_FORMATS & set(names) or any(name.endswith("_pipe") for name in names):
        raise Unreadable(f"no video ({container.format.long_name})")
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise Unreadable("no video stream" + (", only audio" if container.streams.audio else ""))
    streams[0].codec_context.thread_count = 1
    return container, streams[0]


def _packets(container, stream) -> Iterator:
    """The packets up to the first that can't be read."""
    with contextlib.suppress(av.error.FFmpegError):
        yield from container.demux(stream)


def _decoded(container, stream) -> Iterator:
    """The frames that can be decoded; broken packets are passed over."""
    for packet in _packets(container, stream):
        with contextlib.suppress(av.error.FFmpegError):
            yield from packet.decode()


def _times(shown: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Times of all frames and of key frames; none where not every frame has a time of its own."""
    times = {time for time, *_ in shown if time is not None}
    keys = {time for time, is_key, _ in shown if is_key}
    if len(times) < len(shown):
        times = keys = set()
    return np.array(sorted(times), np.int64), np.array(sorted(keys), np.int64)


def _timeline(times: np.ndarray) -> np.ndarray:
    """(N,) the frame shown in the middle of each of N equal spans of time: 0..N-1 at a constant
    rate."""
    step = (times[-1] - times[0]) / (len(times) - 1)
    middle = times[0] + (np.arange(len(times)) + 0.5) * step
    return np.searchsorted(times, middle, side="right") - 1


def answer(path: str, settings: FrameSettings, timeout: float) -> Result:
    """`read`, with whatever goes wrong as the file's reason."""
    try:
        return read(path, settings, timeout)
    except Unreadable as error:
        reason = str(error)
    except (av.error.FFmpegError, OSError) as error:
        reason = f"can't be read: {error.strerror}"
    except Exception as error:  # whatever a library makes of a hostile file
        reason = f"can't be read: {type(error).__name__} {' '.join(str(error).split())}"[:200]
    return VideoInfo(reason=reason), []


def serve(connection: Connection, timeout: float) -> None:
    """Answer until the other side goes. SIGALRM, at its default, ends the process whatever it
    does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    connection.send_bytes(READY)
    # what libraries say about broken files
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    with contextlib.suppress(EOFError, OSError):
        while True:
            path, settings = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, timeout)
            info, frames = answer(path, FrameSettings(**settings), timeout)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for message in (json.dumps(vars(info)).encode(), *frames):
                connection.send_bytes(message)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
