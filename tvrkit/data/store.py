"""Reading a frame store: every video's frames as JPEG files in LMDB, the kit's own or of HMMC's
making."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
import simplejpeg
from tqdm import tqdm

from tvrkit.settings import choose

LAYOUTS = {"kit": "{id}/{index:06d}", "hmmc": "{id}_{index}", "chvtt": "Video{id}_{index}"}
KEYS = {
    "kit": re.compile(r"(.+)/\d{6}", re.DOTALL),
    "hmmc": re.compile(r"(.+)_\d+", re.DOTALL),
    "chvtt": re.compile(r"Video(.+)_\d+", re.DOTALL),
}
SETTINGS, ROW = (
    b"\0settings",
    b"\0row/",
)  # no video id holds \0: the kit's own entries meet no frame's key
MAX_ID = 480  # bytes; LMDB's keys have 511
# LMDB opens a file once per process: (device, inode) -> (process, environment)
_ENVIRONMENTS: dict[tuple[int, int], tuple[int, lmdb.Environment]] = {}


def check_id(video_id: str) -> str:
    """`video_id`, if it can be a key and part of a file name.

    Raises:
        ValueError: no text, empty, too long, begins with a dot, or holds a slash or a control
            character.
    """
    usable = isinstance(video_id, str) and 0 < len(video_id.encode(errors="replace")) <= MAX_ID
    if (
        not usable
        or video_id.startswith(".")
        or re.search(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", video_id)
    ):
        raise ValueError(
            f"unusable video id {str(video_id)[:80]!r}: expected 1 to {MAX_ID} bytes of text "
            "that holds no slash or control character and does not begin with a dot"
        )
    return video_id


class FrameStore:
    """A store that is read. Nothing is open before the first read of a process; safe to pickle and
    to fork.

    Args:
        path: folder, or file, of the LMDB environment.
        layout: of the keys: "kit" `id/000012`, "hmmc" `id_12`, "chvtt" `Videoid_12`. None: what the
            store says, or, in a store of other making, what its first key looks like ("chvtt" must
            be asked for).
    """

    def __init__(self, path: Path | str, layout: str | None = None):
        self.path = Path(path)
        self._layout = layout and choose("layout", layout, LAYOUTS)

    @property
    def layout(self) -> str:
        """Name of the key layout."""
        if self._layout is None:
            self._layout = self.settings.get("layout") or self._guess_layout()
        return self._layout

    @property
    def settings(self) -> dict:
        """What the store was built with; empty for a store of other making."""
        with self._begin() as transaction:
            return json.loads(bytes(transaction.get(SETTINGS, b"{}")))

    def read(self, video_id: str, indices: Sequence[int]) -> np.ndarray:
        """Frames of one video.

        Returns:
            (F, H, W, 3) uint8 RGB.

        Raises:
            KeyError: the store has no such frame.
            ValueError: no index, a frame is no JPEG file, or the frames differ in size.
        """
        with self._begin() as transaction:
            images = [self._image(transaction, video_id, int(index)) for index in indices]
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ValueError(
                f"{self.path}: expected frames of one size of {video_id!r}, got sizes {sorted(sizes)}"
            )
        return np.stack(images)

    def count(self, video_id: str) -> int:
        """Stored frames of a video, 0 for an unknown one."""
        with self._begin() as transaction:
            return stored(transaction, self.layout, video_id)

    def video_ids(self) -> list[str]:
        """Videos with frames, sorted."""
        return sorted(
            {match[1] for match in map(KEYS[self.layout].fullmatch, self._keys()) if match}
        )

    def rows(self) -> pd.DataFrame:
        """A row per video that was tried, as `extract` returns them; none in a store of other
        making."""
        with self._begin() as transaction:
            return pd.DataFrame(list(read_rows(transaction).values()))

    def verify(self) -> list[str]:
        """Read everything.

        Returns:
            What is wrong with the store, a line each; nothing where it is whole.
        """
        problems, found, keys = [], {}, sum(1 for _ in self._keys())
        for video_id in tqdm(
            self.video_ids(), desc=f"verifying {self.path.name}", unit="video", delay=2
        ):
            found[video_id] = self.count(video_id)
            try:
                self.read(video_id, range(found[video_id]))
            except (KeyError, ValueError) as error:
                problems.append(f"{video_id}: {error.args[0]}")
        if keys != sum(found.values()):
            problems.append(
                f"{keys} frames are stored, {sum(found.values())} can be reached counting from 0"
            )
        for row in self.rows().to_dict("records"):
            there = found.pop(row["video_id"], 0)
            if row["frames"] != there:
                problems.append(
                    f"{row['video_id']}: expected {row['frames']} frames, found {there}"
                )
        if self.settings and found:
            problems.append(f"{len(found)} videos without a row: {', '.join(list(found)[:3])}")
        return problems

    def _image(self, transaction, video_id: str, index: int) -> np.ndarray:
        data = transaction.get(frame_key(self.layout, video_id, index))
        if data is None:
            raise KeyError(f"{self.path} has no frame {index} of video {video_id!r}")
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: frame {index} of {video_id!r} is broken: {error}"
            ) from None

    def _guess_layout(self) -> str:
        return "kit" if KEYS["kit"].fullmatch(next(self._keys(), "")) else "hmmc"

    def _keys(self) -> Iterator[str]:
        with self._begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                if bytes(key[:1]) != b"\0":
                    yield bytes(key).decode(errors="replace")

    def _begin(self) -> lmdb.Transaction:
        return _environment(self.path).begin(buffers=True)


def frame_key(layout: str, video_id: str, index: int) -> bytes:
    """Key of a frame."""
    return LAYOUTS[layout].format(id=video_id, index=index).encode()


def stored(transaction: lmdb.Transaction, layout: str, video_id: str) -> int:
    """Frames of a video that are there, counting from 0."""
    return next(
        index for index in count() if transaction.get(frame_key(layout, video_id, index)) is None
    )


def read_rows(transaction: lmdb.Transaction) -> dict[str, dict]:
    """The rows of the videos that were tried, by id."""
    rows, cursor = {}, transaction.cursor()
    cursor.set_range(ROW)
    for key, value in cursor:
        if bytes(key[: len(ROW)]) != ROW:
            break
        rows[bytes(key[len(ROW) :]).decode()] = json.loads(bytes(value))
    return rows


def partial(store: Path) -> Path:
    """Where a store is built until it is whole."""
    return store.with_name(store.name + ".partial")


def release(store: Path) -> None:
    """Close the store in this process, if it is there and open, so that it can be opened for
    writing."""
    with contextlib.suppress(FileNotFoundError):
        stat = (store / "data.mdb").stat()
        if (stat.st_dev, stat.st_ino) in _ENVIRONMENTS:
            _ENVIRONMENTS.pop((stat.st_dev, stat.st_ino))[1].close()


def _environment(path: Path) -> lmdb.Environment:
    """The process's one read-only environment of the store at `path`."""
    data = path / "data.mdb" if path.is_dir() else path
    try:
        stat = data.stat()
    except FileNotFoundError:
        half = ": it is half-built, extract again to finish it" if partial(path).exists() else ""
        raise FileNotFoundError(f"no frame store at {path}{half}") from None
    key, process = (stat.st_dev, stat.st_ino), os.getpid()
    if (
        key in _ENVIRONMENTS and _ENVIRONMENTS[key][0] != process
    ):  # inherited by fork: not to be used here
        _ENVIRONMENTS.pop(key)[1].close()
    if key not in _ENVIRONMENTS:
        _ENVIRONMENTS[key] = process, _open(path, stat.st_size)
    return _ENVIRONMENTS[key][1]


def _open(path: Path, size: int) -> lmdb.Environment:
    options = {"readonly": True, "lock": False, "readahead": False, "create": False}
    try:
        environment = lmdb.open(str(path), subdir=path.is_dir(), **options)
    except lmdb.Error as error:
        raise ValueError(f"{path} is no frame store: {error}") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:  # reading behind the end of a mapped file would kill the process
        environment.close()
        raise ValueError(f"{path} is cut off: expected {needed:,} bytes, found {size:,}")
    return environment
