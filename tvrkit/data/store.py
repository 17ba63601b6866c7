"""Reading a frame store: every video's frames as JPEG files in LMDB, the kit's own or of HMMC's
making."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from itertools import count, islice, takewhile
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import lmdb
import numpy as np
import simplejpeg
from tqdm import tqdm

from tvrkit.data.decoders import MAX_PIXELS
from tvrkit.files import expect, json_object

T = TypeVar("T")
# of a frame's key: what it is made of, and how its video's id is found in it
LAYOUTS = {"kit": "{id}/{index:06d}", "hmmc": "{id}_{index}"}
KEYS = {"kit": re.compile(r"(?s)(.+)/\d{6}"), "hmmc": re.compile(r"(?s)(.+)_\d+")}
DIGITS = 16  # of a frame's SHA-256 that are kept
# The kit's own entries: no video id holds \0, so they meet no frame's key.
SETTINGS, ROW = b"\0settings", b"\0row/"
MAX_ID = 480  # bytes; LMDB's keys have 511
UNUSABLE_ID = re.compile(r"^\.|[/\\\x00-\x1f\x7f\ud800-\udfff]")
# control characters, marks that turn text around, what is no text, and what looks like an escape
UNSAFE = re.compile(
    r"[\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|%(?=[0-9A-Fa-f]{2})"
)
# LMDB opens a file once per process: (device, inode) -> environment; of no use after a fork
_ENVIRONMENTS: dict[tuple[int, int], lmdb.Environment] = {}
os.register_at_fork(after_in_child=_ENVIRONMENTS.clear)


def check_id(video_id: str) -> str:
    """`video_id`, if it can be a key and part of a file name.

    Raises:
        ValueError: no text, empty, too long, begins with a dot, or holds a slash or a control
            character.
    """
    size = len(video_id.encode(errors="replace")) if isinstance(video_id, str) else 0
    if not 0 < size <= MAX_ID or UNUSABLE_ID.search(video_id):
        expected = f"1 to {MAX_ID} bytes of text, no dot first, no slash or control character"
        raise ValueError(f"unusable video id {str(video_id)[:80]!r}: expected {expected}")
    return video_id


def escape(name: str) -> str:
    """A file's name as text for tables and terminals: `%0A` for what is no text or moves the
    cursor. Whatever the name is, `urllib.parse.unquote_to_bytes` gives it back."""
    return UNSAFE.sub(lambda match: quote(os.fsencode(match[0]), safe=""), name)


def make_id(name: str) -> str:
    """A usable id of a file's name: escaped, and shortened where it is too long."""
    text = escape(name)
    if len(text.encode()) <= MAX_ID:
        return text
    digest = sha256(os.fsencode(name)).hexdigest()
    return text.encode()[: MAX_ID - len(digest)].decode(errors="ignore") + digest


def digest(frame: bytes | memoryview) -> str:
    """What a stored frame is known by; a video's `hash` has those of all its frames, in order."""
    return sha256(frame).hexdigest()[:DIGITS]


class FrameStore:
    """A store that is read. Nothing is open before the first read of a process; safe to pickle and
    to fork.

    Args:
        path: folder, or file, of the LMDB environment.
        hashes: `hash` of each video, with which every frame that is read is compared; the store's
            own where None.
    """

    def __init__(self, path: Path | str, hashes: Mapping[str, str] | None = None):
        self.path, self.hashes = Path(path), hashes

    @cached_property
    def layout(self) -> str:
        """Name of the key layout, by what the first key looks like: "kit" `id/000012`, or "hmmc"
        `id_12`."""
        return "kit" if KEYS["kit"].fullmatch(next(self._keys(), "")) else "hmmc"

    @property
    def settings(self) -> dict:
        """What the store was built with; empty for a store of other making."""
        with self.begin() as transaction:
            return _object(transaction.get(SETTINGS, b"{}"))

    def read(self, video_id: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames of one video.

        Returns:
            (F, H, W, 3) uint8 RGB.

        Raises:
            KeyError: the store has no such frame.
            ValueError: no index, a frame is no JPEG file or not the one that was stored, or the
                frames differ in size.
        """
        with self.begin() as transaction:
            known = self._known(transaction, video_id)
            files = [self._file(transaction, video_id, int(i), known) for i in indices]
            one_size, sizes = f"frames of one size of {video_id!r}", sorted({s for _, s in files})
            expect(len(sizes) == 1, self.path, one_size, f"sizes {sizes}")
            frames = np.empty((len(files), *sizes[0], 3), np.uint8)
            for index, (data, _), frame in zip(indices, files, frames, strict=True):
                with self._broken(video_id, index):
                    simplejpeg.decode_jpeg(data, buffer=frame)
        return frames

    def count(self, video_id: str) -> int:
        """Stored frames of a video, 0 for an unknown one."""
        with self.begin() as transaction:
            return stored(transaction, self.layout, video_id)

    def hash(self, video_id: str) -> str:
        """The `digest` of each frame that is stored of a video, one after the other."""
        keys = [frame_key(self.layout, video_id, index) for index in range(self.count(video_id))]
        with self.begin() as transaction:
            return "".join(digest(transaction.get(key, b"")) for key in keys)

    def video_ids(self) -> list[str]:
        """Videos with frames, sorted."""
        matches = map(KEYS[self.layout].fullmatch, self._keys())
        return sorted({match[1] for match in matches if match})

    def rows(self) -> dict[str, dict]:
        """The row of each video that was tried, by id; none in a store of other making."""
        with self.begin() as transaction:
            entries = transaction.cursor()
            entries.set_range(ROW)
            own = takewhile(lambda entry: bytes(entry[0]).startswith(ROW), entries)
            return {bytes(key)[len(ROW) :].decode(): _object(value) for key, value in own}

    def verify(self) -> list[str]:
        """Read everything, in a process of its own.

        Returns:
            What is wrong with the store, a line each; nothing where it is whole.
        """
        try:
            return apart(self._verify)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # of damaged entries
            return [f"can't be read: {type(error).__name__} {error}"]

    def _verify(self) -> list[str]:
        problems, counts = [], {video_id: self.count(video_id) for video_id in self.video_ids()}
        title = f"verifying {self.path.name}"
        for video_id, frames in tqdm(counts.items(), title, unit="video", delay=2):
            try:
                self.read(video_id, range(frames))
            except (KeyError, ValueError) as error:
                problems.append(f"{video_id}: {error.args[0]}")
        keys, reached = sum(1 for _ in self._keys()), sum(counts.values())
        if keys != reached:
            problems.append(f"{keys} frames are stored, {reached} can be reached counting from 0")
        for video_id, row in self.rows().items():
            if row["frames"] != (there := counts.pop(video_id, 0)):
                problems.append(f"{video_id}: expected {row['frames']} frames, found {there}")
        if self.settings and counts:
            problems.append(f"{len(counts)} videos without a row: {', '.join(list(counts)[:3])}")
        return problems

    def _known(self, transaction, video_id: str) -> str:
        """The video's `hash`; "" where nobody has hashed its frames."""
        if self.hashes is not None:
            return self.hashes.get(video_id, "")
        row = transaction.get(ROW + video_id.encode())
        return _object(row).get("hash", "") if row else ""

    def _file(
        self, transaction, video_id: str, index: int, known: str
    ) -> tuple[memoryview, tuple[int, int]]:
        """A JPEG file, valid within the transaction, and the height and width of its picture."""
        data = transaction.get(frame_key(self.layout, video_id, index))
        if data is None:
            raise KeyError(f"{self.path} has no frame {index} of video {video_id!r}")
        with self._broken(video_id, index):
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if height * width > MAX_PIXELS:  # a few bytes can claim billions
                raise ValueError(f"{width} x {height} pixels, expected at most {MAX_PIXELS:,}")
            if known and digest(data) != known[DIGITS * index :][:DIGITS]:
                raise ValueError("not as it was stored, it has another SHA-256")
        return data, (height, width)

    @contextmanager
    def _broken(self, video_id: str, index: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            broken = f"frame {index} of {video_id!r} is broken"
            raise ValueError(f"{self.path}: {broken}: {error}") from None

    def _keys(self) -> Iterator[str]:
        """Of frames; no more than there are entries: those of a damaged file may go in circles."""
        with self.begin() as transaction:
            entries = islice(transaction.cursor(), _environment(self.path).stat()["entries"])
            keys = (bytes(key) for key, _ in entries)
            yield from (key.decode(errors="replace") for key in keys if key[:1] != b"\0")

    @contextmanager
    def begin(self) -> Iterator[lmdb.Transaction]:
        """A transaction that reads; a damaged file is a ValueError."""
        try:
            with _environment(self.path).begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None


def _object(value: bytes | memoryview) -> dict:
    return json_object(bytes(value).decode(), "an entry")


def apart(function: Callable[..., T], *arguments) -> T:
    """What the function returns or raises, from a process of its own: a damaged LMDB file can end
    the one that reads it, which is a ValueError here."""
    with ProcessPoolExecutor(1, get_context("fork")) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise ValueError("it ends the process that reads it: the file is damaged") from None


def frame_key(layout: str, video_id: str, index: int) -> bytes:
    """Key of a frame."""
    return LAYOUTS[layout].format(id=video_id, index=index).encode()


def stored(transaction: lmdb.Transaction, layout: str, video_id: str) -> int:
    """Frames of a video that are there, counting from 0."""
    return next(i for i in count() if transaction.get(frame_key(layout, video_id, i)) is None)


def partial(store: Path) -> Path:
    """Where a store is built until it is whole."""
    return store.with_name(store.name + ".partial")


def release(store: Path) -> None:
    """Close the store in this process, if it is there and open, so that it can be opened for
    writing."""
    with suppress(FileNotFoundError):
        stat = (store / "data.mdb").stat()
        if (stat.st_dev, stat.st_ino) in _ENVIRONMENTS:
            _ENVIRONMENTS.pop((stat.st_dev, stat.st_ino)).close()


def _environment(path: Path) -> lmdb.Environment:
    """The process's one read-only environment of the store at `path`."""
    data = path / "data.mdb" if path.is_dir() else path
    if not data.is_file():  # one that is a pipe would never be opened
        half = ": it is half-built, extract again to finish it" if partial(path).exists() else ""
        raise FileNotFoundError(f"no frame store at {path}{half}")
    stat = data.stat()
    key = stat.st_dev, stat.st_ino
    if key not in _ENVIRONMENTS:
        _ENVIRONMENTS[key] = _open(path, stat.st_size)
    return _ENVIRONMENTS[key]


def _open(path: Path, size: int) -> lmdb.Environment:
    options = {"readonly": True, "lock": False, "readahead": False, "create": False}
    try:
        environment = lmdb.open(os.fsencode(path), subdir=path.is_dir(), **options)
    except lmdb.Error as error:
        raise ValueError(f"{path} is no frame store: {error}") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:  # reading behind the end of a mapped file would kill the process
        environment.close()
        raise ValueError(f"{path} is cut off: expected {needed:,} bytes, found {size:,}")
    return environment
