"""Video files for the tests: frame i is grey of level 5 i, with a red corner at the top left."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tvrkit.data.decoders import decoder_versions

STEP = 5  # grey levels between frames: the index survives coding
COUNT = 48
needs_decord = pytest.mark.skipif(
    "decord" not in decoder_versions(), reason="decord has no wheel for this machine"
)


def pictures(count=COUNT, height=64, width=96):
    images = np.empty((count, height, width, 3), np.uint8)
    images[:] = (STEP * np.arange(count) % 256)[:, None, None, None]
    images[:, : height // 4, : width // 4] = (255, 0, 0)
    return images


def write_video(path, count=COUNT, height=64, width=96, times=None, **coding):
    """`times`: milliseconds at which each frame is shown; 30 frames a second where None.

    `coding`: codec, pixels, gop (frames from one key frame to the next), and the container's flags
    and format.
    """
    codec, pixels = coding.get("codec", "libx264"), coding.get("pixels", "yuv420p")
    options = {"preset": "ultrafast", "crf": "4"} if codec == "libx264" else {}
    container_options = {"format": coding.get("format"), "options": coding.get("flags", {})}
    with av.open(str(path), "w", **container_options) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.bit_rate, stream.codec_context.gop_size = 4_000_000, coding.get("gop", 12)
        for index, image in enumerate(pictures(count, height, width)):
            frame = av.VideoFrame.from_ndarray(image)
            if times is not None:
                frame.pts, frame.time_base = int(times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def write_audio(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def rotate(path, turns):
    """Ask for `turns` quarter turns clockwise in the header of an .mp4 file."""
    matrix = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[turns]
    data = bytearray(path.read_bytes())
    # version and flags; times, id, duration; reserved; layer to volume
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    for place, value in zip((0, 1, 3, 4), matrix, strict=True):
        struct.pack_into(">i", data, start + 4 * place, value << 16)
    path.write_bytes(data)
    return path


def over_report(path, frames=10_000):
    """Make the headers of an .avi file promise more frames than it holds."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, frames)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, frames)
    path.write_bytes(data)
    return path


def indices(frames):
    """Which frame of `pictures` each one is, from its lower right quarter."""
    height, width = frames.shape[1:3]
    levels = frames[:, height // 2 :, width // 2 :].mean((1, 2, 3))
    return np.rint(levels / STEP).astype(int).tolist()
