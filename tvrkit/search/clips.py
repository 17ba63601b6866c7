"""Files of a folder, and what is read of each: segments, their frames as JPEG files.

No video is decoded in this process, but by the workers of `tvrkit.data.decoders`.
"""

import contextlib
import math
import os
import pickle  # between this process and its own workers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from tvrkit.data.decoders import DecodeError, DecodePool, FrameSettings, VideoInfo
from tvrkit.data.extract import VIDEO_SUFFIXES
from tvrkit.data.prepare import SHORT_SIDE
from tvrkit.data.sampling import sample
from tvrkit.files import sha256

SECONDS = 10.0  # of a segment; a rest of less than half of it is not cut off
CUT = 0.45  # share of a picture's colours that changes at once at a shot boundary
SHORTEST = 2  # frames of a shot
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows some that are programs
LARGEST = 1024  # pixels: sides of a picture that is a query


class File(NamedTuple):
    """A file as the folder has it: absolute path (bytes that are no UTF-8 stand in it as
    surrogates), size in bytes, time of its last change in nanoseconds."""

    path: str
    size: int
    modified: int

    @property
    def sha256(self) -> str:
        """Hash of the content, "" where it can't be read."""
        with contextlib.suppress(OSError):
            return sha256(Path(self.path))
        return ""


class Segment(NamedTuple):
    """A span of a video, in seconds, and its frames as JPEG files."""

    start: float
    end: float
    frames: list[bytes]


class Clip(NamedTuple):
    """A file that was read; without segments, `info.reason` says why."""

    file: File
    sha256: str
    info: VideoInfo
    segments: list[Segment]


def find(folder: Path) -> list[File]:
    """The videos of a tree, by path: files whose names end as videos' do.

    Links are followed, each folder is entered once; hidden files and folders are passed over.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of videos at {folder}")
    found, entered = [], set()
    for place, folders, names in os.walk(os.path.abspath(folder), followlinks=True):
        here = os.path.realpath(place)
        seen = [name for name in (*folders, *names) if name[0] != "." and here not in entered]
        folders[:] = sorted(set(folders) & set(seen))
        entered.add(here)
        for path in (os.path.join(place, name) for name in seen):
            if os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES and os.path.isfile(path):
                with contextlib.suppress(FileNotFoundError):  # it may be gone by now
                    status = os.stat(path)
                    found.append(File(path, status.st_size, status.st_mtime_ns))
    return sorted(found)


def read(pool: DecodePool, file: File, frames: int, seconds: float) -> Clip:
    """Hash and segments of one file.

    A video of up to 1.5 `seconds` is one segment of `frames` frames, sampled uniformly. A longer
    one is sampled at the rate of `frames` in `seconds`, and cut at its shots; a longer shot is cut
    into segments that overlap by half.
    """
    info, pictures = _sample(pool, file.path, frames)
    spans = [(0, len(pictures))] if pictures else []
    if info.duration >= 1.5 * seconds and len(pictures) == frames:
        info, pictures = _sample(pool, file.path, math.ceil(info.duration / seconds * frames))
        spans = cut(pictures, frames)
    step = info.duration / max(1, len(pictures))
    chosen = [[pictures[a + i] for i in sample("uniform", b - a, frames)] for a, b in spans]
    segments = [Segment(a * step, b * step, p) for (a, b), p in zip(spans, chosen, strict=True)]
    return Clip(file, file.sha256, info, segments)


class Reader:
    """`read` for a worker of Ray, which so loads no torch: pickled files in, pickled clips out."""

    def __init__(self, frames: int, seconds: float):
        self.pool, self.settings = DecodePool(1), (frames, seconds)

    def __call__(self, row: dict) -> dict:
        return {"clip": pickle.dumps(read(self.pool, pickle.loads(row["file"]), *self.settings))}


def _sample(pool: DecodePool, path: str, frames: int) -> tuple[VideoInfo, list[bytes]]:
    return next(pool.run([path], FrameSettings(frames, SHORT_SIDE)))


def cut(pictures: Sequence[bytes], length: int) -> list[tuple[int, int]]:
    """Spans (first, behind the last) of segments of up to 1.5 `length` frames.

    A shot begins where the histogram of 64 colours changes by more than `CUT`.
    """
    colours = np.stack([_histogram(picture) for picture in pictures])
    change = np.abs(np.diff(colours, axis=0)).sum(axis=1) / 2
    starts = [0]
    for place in (np.flatnonzero(change > CUT) + 1).tolist():
        if place - starts[-1] >= SHORTEST and place + SHORTEST <= len(pictures):
            starts.append(place)
    ends = [*starts[1:], len(pictures)]
    return [span for a, b in zip(starts, ends, strict=True) for span in _windows(a, b, length)]


def _histogram(picture: bytes) -> np.ndarray:
    """(64,) shares of colours."""
    levels = simplejpeg.decode_jpeg(picture, min_height=16, min_width=16) >> 6
    codes = levels @ np.array([16, 4, 1], np.uint8)
    return np.bincount(codes.ravel(), minlength=64) / codes.size


def _windows(start: int, end: int, length: int) -> Iterator[tuple[int, int]]:
    """Spans of `length` frames that overlap by half; the last one takes the rest."""
    half = max(1, length // 2)
    while end - start >= length + half:
        yield start, start + length
        start += half
    yield start, end


def read_still(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture, upright and small.

    Raises:
        DecodeError: it is no picture, or one of more than 179 million pixels.
    """
    try:
        picture = ImageOps.exif_transpose(Image.open(path, formats=PICTURES)).convert("RGB")
    except Exception as error:  # a stranger's file: Pillow raises of many kinds
        raise DecodeError(f"{path}: no picture: {error}") from None
    picture.thumbnail((LARGEST, LARGEST))
    return np.asarray(picture)
