"""Files of a folder and what is read of each, as rows that grow: where the file is, then its
segments and their pictures; `tvrkit.search.encoder` adds what a model sees in them.

No video is decoded in this process, but by the workers of `tvrkit.data.decoders`.
"""

import contextlib
import hashlib
import math
import os
import pickle  # between this process and its own workers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from tvrkit.data.decoders import DecodePool, FrameSettings
from tvrkit.data.extract import VIDEO_SUFFIXES, walk
from tvrkit.data.prepare import SHORT_SIDE
from tvrkit.data.sampling import sample
from tvrkit.files import sha256

Row = dict[str, Any]
SECONDS = 10.0  # of a segment; a rest of less than half of it is not cut off
CUT = 0.45  # share of a picture's colours that changes at once at a shot boundary
SHORTEST = 2  # frames of a shot
STRIP = 64  # pixels: height of the film strip


def find(folder: Path) -> list[Row]:
    """The videos of a tree, by name: files whose names end as videos' do.

    Links are followed, each folder is entered once; hidden files and folders are passed over.

    Returns:
        For each: `name`, the bytes of its absolute path; `path`, the same as text, where bytes that
        are no UTF-8 are `\\xff`; `file`, which stands for it, letters and digits alone; `size` in
        bytes; `date` of its last change, nanoseconds since 1970.

    Raises:
        FileNotFoundError: no such folder.
    """
    files, entered = [], set()
    for place, folders, names in walk(folder, followlinks=True):
        if (here := os.path.realpath(place)) in entered:
            folders[:] = names = []
        entered.add(here)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for path in (os.path.join(place, name) for name in names if name[0] != "."):
            if os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES and os.path.isfile(path):
                with contextlib.suppress(FileNotFoundError):  # it may be gone by now
                    files.append(_facts(os.fsencode(os.path.abspath(path)), os.stat(path)))
    return sorted(files, key=lambda row: row["name"])


def _facts(name: bytes, status: os.stat_result) -> Row:
    key, text = hashlib.sha256(name).hexdigest()[:24], name.decode(errors="backslashreplace")
    known = {"size": status.st_size, "date": status.st_mtime_ns}
    return {"file": key, "path": text, "name": name, **known}


def content(row: Row) -> str:
    """SHA-256 of a row's file, "" where it can't be read."""
    with contextlib.suppress(OSError):
        return sha256(Path(os.fsdecode(row["name"])))
    return ""


def read(pool: DecodePool, row: Row, frames: int, seconds: float) -> list[Row]:
    """A row for each segment of one file; for a file that gives no frames a row with its reason.

    A video of up to 1.5 `seconds` is one segment of `frames` frames, sampled uniformly. A longer
    one is sampled at the rate of `frames` in `seconds`, and cut at its shots; a longer shot is cut
    into segments that overlap by half.

    Returns:
        `row` and what `VideoInfo` says, and of a segment: its number, `start` and `end` (s),
        `pictures`, its frames as JPEG files, and `strip`, these side by side and small.
    """

    name = [os.fsdecode(row["name"])]
    info, pictures = next(pool.run(name, FrameSettings(frames, SHORT_SIDE)))
    if is_long := info.duration >= 1.5 * seconds and len(pictures) == frames:
        count = math.ceil(info.duration / seconds * frames)
        info, pictures = next(pool.run(name, FrameSettings(count, SHORT_SIDE)))
    known = row | vars(info) | {"sha256": content(row), "segment": 0, "status": "failed"}
    if not pictures:
        return [known]
    made, step = [], info.duration / len(pictures)
    spans = cut(pictures, frames) if is_long else [(0, len(pictures))]
    for number, (first, end) in enumerate(spans):
        chosen = [pictures[first + i] for i in sample("uniform", end - first, frames)]
        place = {"segment": number, "start": first * step, "end": end * step, "status": "ok"}
        made.append(known | place | {"pictures": chosen, "strip": strip(chosen)})
    return made


class Reader:
    """`read` for a worker of Ray, which so loads no torch: pickled rows in and out."""

    def __init__(self, frames: int, seconds: float):
        self.pool, self.settings = DecodePool(1), (frames, seconds)

    def __call__(self, item: dict) -> dict:
        return {"rows": pickle.dumps(read(self.pool, pickle.loads(item["row"]), *self.settings))}


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


def _windows(start: int, end: int, length: int) -> list[tuple[int, int]]:
    """Spans of `length` frames that overlap by half; the last one takes the rest."""
    half = max(1, length // 2)
    starts = range(start, end - length - half + 1, half)
    return [*((first, first + length) for first in starts), (start + half * len(starts), end)]


def strip(pictures: Sequence[bytes]) -> bytes:
    """The frames side by side, small, as one JPEG file."""
    images = [simplejpeg.decode_jpeg(picture, min_height=STRIP) for picture in pictures]
    return simplejpeg.encode_jpeg(np.concatenate(images, axis=1), quality=75)
