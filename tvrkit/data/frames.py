"""The frame store: every video's frames, extracted once, as JPEG files in LMDB.

Training and search read only the store. It is built in a temporary folder and renamed when whole; each video's
frames and its row enter in one transaction, so a kill at any moment loses at most the videos of the last one, and
the finished store is the same as an unbroken run's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
import simplejpeg
from tqdm import tqdm

from tvrkit.config import choose
from tvrkit.data.decode import DecodePool, Job, decoder_versions

LAYOUTS = {"kit": "{id}/{index:06d}", "hmmc": "{id}_{index}", "chvtt": "Video{id}_{index}"}
INDEX = {"kit": re.compile(r"/\d{6}$"), "hmmc": re.compile(r"_\d+$"), "chvtt": re.compile(r"_\d+$")}
SETTINGS = b"\0settings"  # no video id holds \0, so the kit's own entries can't meet a frame's key
ROW = b"\0row/"
MAX_ID = 480  # bytes; LMDB's keys have 511
FIRST_MAP, COMMIT = 1 << 28, 64  # bytes of address space to begin with; videos per transaction
VIDEO_SUFFIXES = set(
    ".mp4 .avi .mkv .webm .mov .mpg .mpeg .m4v .3gp .wmv .flv .ts .mts .m2ts .vob .ogv .asf .gif".split()
)
NO_FILE = "no file found"
ROW_FIELDS = ("frames", "fps", "duration", "width", "height", "decoder", "reason")
COLUMNS = [
    "video_id",
    "file",
    "status",
    "reason",
    "requested",
    "frames",
    "fps",
    "duration",
    "width",
    "height",
]
COLUMNS += ["decoder", "bytes"]
# LMDB opens a file once per process: (device, inode) -> (process, environment)
_ENVIRONMENTS: dict[tuple[int, int], tuple[int, lmdb.Environment]] = {}


def check_id(video_id: str) -> str:
    """`video_id`, if it can be a key and part of a file name.

    Raises:
        ValueError: empty, too long, hidden, with a slash or a control character.
    """
    usable = isinstance(video_id, str) and 0 < len(video_id.encode(errors="replace")) <= MAX_ID
    if not usable or video_id.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", video_id):
        raise ValueError(
            f"unusable video id {str(video_id)[:80]!r}: expected 1 to {MAX_ID} bytes of text without "
            "slashes and control characters that does not begin with a dot"
        )
    return video_id


class FrameStore:
    """A store that is read. Nothing is open until the first read of a process; safe to pickle and to fork.

    Args:
        path: folder (or file) of the LMDB environment.
        layout: of the keys: "kit" `id/000012`, "hmmc" `id_12`, "chvtt" `Videoid_12`; where None, what the store
            says, or in a store of other making what its first key looks like.
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
        with self._read() as transaction:
            return json.loads(bytes(transaction.get(SETTINGS, b"{}")))

    def read(self, video_id: str, indices: Sequence[int]) -> np.ndarray:
        """Frames of one video.

        Returns:
            (F, H, W, 3) uint8 RGB.

        Raises:
            KeyError: the store has no such frame. ValueError: a frame is no JPEG file, or sizes differ.
        """
        with self._read() as transaction:
            images = [self._image(transaction, video_id, int(index)) for index in indices]
        if len({image.shape for image in images}) != 1:
            raise ValueError(f"{self.path}: frames of one size expected, got none or several: {video_id!r}")
        return np.stack(images)

    def count(self, video_id: str) -> int:
        """Stored frames of a video, 0 for an unknown one."""
        with self._read() as transaction:
            return _stored(transaction, self.layout, video_id)

    def video_ids(self) -> list[str]:
        """Videos with frames, sorted."""
        pattern, prefix = INDEX[self.layout], LAYOUTS[self.layout].partition("{")[0]
        return sorted(
            {pattern.sub("", key).removeprefix(prefix) for key in self._keys() if pattern.search(key)}
        )

    def rows(self) -> pd.DataFrame:
        """A row per video that was tried, as `extract` returns them; none in a store of other making."""
        with self._read() as transaction:
            return pd.DataFrame([row for _, row in _rows(transaction)])

    def verify(self) -> list[str]:
        """Read everything: what is wrong with the store, a line each; [] where nothing is."""
        problems, seen = [], {}
        for video_id in tqdm(self.video_ids(), desc=f"verifying {self.path.name}", unit="video", delay=2):
            seen[video_id] = self.count(video_id)
            try:
                self.read(video_id, range(seen[video_id]))
            except (KeyError, ValueError) as error:
                problems.append(f"{video_id}: {error.args[0]}")
        pattern = INDEX[self.layout]
        keys = sum(1 for key in self._keys() if pattern.search(key))
        if keys != sum(seen.values()):
            problems.append(
                f"{keys} frames are stored, {sum(seen.values())} can be reached by counting from 0"
            )
        for row in self.rows().itertuples():
            found = seen.pop(row.video_id, 0)
            if row.frames != found:
                problems.append(f"{row.video_id}: {row.frames} frames expected, {found} found")
        if self.settings and seen:
            problems.append(f"{len(seen)} videos without a row: {', '.join(list(seen)[:3])}")
        return problems

    def _image(self, transaction, video_id: str, index: int) -> np.ndarray:
        data = transaction.get(_key(self.layout, video_id, index))
        if data is None:
            raise KeyError(f"{self.path} has no frame {index} of video {video_id!r}")
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            raise ValueError(f"{self.path}: frame {index} of {video_id!r} is broken: {error}") from None

    def _guess_layout(self) -> str:
        first = next(self._keys(), "")
        return "kit" if INDEX["kit"].search(first) else "hmmc"

    def _keys(self) -> Iterator[str]:
        with self._read() as transaction:
            for key in transaction.cursor().iternext(values=False):
                if bytes(key[:1]) != b"\0":
                    yield bytes(key).decode(errors="replace")

    def _read(self):
        return _environment(self.path).begin(buffers=True)


def _environment(path: Path) -> lmdb.Environment:
    """The process's one read-only environment of the store at `path`."""
    data = path / "data.mdb" if path.is_dir() else path
    try:
        stat = data.stat()
    except FileNotFoundError:
        half = (
            f" ({_partial(path).name} is half-built: extract again to finish it)"
            if _partial(path).exists()
            else ""
        )
        raise FileNotFoundError(f"no frame store at {path}{half}") from None
    key, process = (stat.st_dev, stat.st_ino), os.getpid()
    if key in _ENVIRONMENTS and _ENVIRONMENTS[key][0] != process:  # inherited by fork: not for use here
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
        raise ValueError(f"{path} is cut off: {needed:,} bytes expected, {size:,} found")
    return environment


def _key(layout: str, video_id: str, index: int) -> bytes:
    return LAYOUTS[layout].format(id=video_id, index=index).encode()


def _stored(transaction, layout: str, video_id: str) -> int:
    return next(index for index in count() if transaction.get(_key(layout, video_id, index)) is None)


def _rows(transaction) -> Iterator[tuple[str, dict]]:
    cursor = transaction.cursor()
    if cursor.set_range(ROW):
        for key, value in cursor:
            if bytes(key[: len(ROW)]) != ROW:
                return
            row = json.loads(bytes(value))
            yield row["video_id"], row


def _partial(store: Path) -> Path:
    return store.with_name(store.name + ".partial")


def extract(
    files: Mapping[str, Path | None],
    store: Path | str,
    *,
    frames: int,
    short_side: int | None,
    workers: int = 2,
    timeout: float = 20.0,
    sampling: str = "uniform",
    quality: int = 90,
    layout: str = "kit",
) -> pd.DataFrame:
    """Read every video into the frame store. Called again, it goes on where it was stopped, and on a finished store
    takes what is new, what has changed, and once more what had failed.

    Args:
        files: video id -> file, or None where no file was found.
        frames: per video, chosen by `sampling` over its time; a shorter video gives all it has.
        short_side: pixels; larger videos are scaled down to it; None keeps every size.
        workers, timeout: processes, and seconds each decoder may take per file.
        quality: of the JPEG files, 1 to 100.

    Returns:
        A row per video in the order of `files`: video_id, file (relative to the store's folder where it lies in it),
        status "ok" or "failed", reason, requested, frames, fps, duration (s), width, height, decoder, bytes.

    Raises:
        ValueError: an unusable id, or the store was built with other settings; the message says both.
        OSError: too little space, before anything is written or while writing; what was finished stays.
    """
    store, wanted = Path(store), list(files)
    settings = {
        "frames": frames, "short_side": short_side, "sampling": sampling, "quality": quality,
        "layout": choose("layout", layout, LAYOUTS), "decoder": decoder_versions(),
    }  # fmt: skip
    files = {
        check_id(video_id): Path(file) for video_id, file in files.items() if file and Path(file).is_file()
    }
    if store.exists() and not _reopen(files, store, settings):
        return _table(wanted, FrameStore(store), frames)
    with _writing(store, settings) as environment:
        with environment.begin() as transaction:
            known = dict(_rows(transaction))
        stale = {i: f for i, f in files.items() if not _current(known.get(i), f, store)}
        with DecodePool(workers, timeout) as pool:
            jobs = {i: Job(str(stale[i]), frames, sampling, short_side, quality) for i in sorted(stale)}
            _check_space(pool, jobs, store)
            _fill(environment, pool, jobs, settings, store, len(files) - len(jobs))
            environment.sync(True)
    os.replace(_partial(store), store)
    return _table(wanted, FrameStore(store), frames)


def _reopen(files, store: Path, settings: dict) -> bool:
    """Take a finished store back to being built, if there is anything left to do."""
    _compare(store, FrameStore(store).settings, settings)
    rows = {row["video_id"]: row for row in FrameStore(store).rows().to_dict("records")}
    if all(_current(rows.get(i), f, store) and rows[i]["status"] == "ok" for i, f in files.items()):
        return False
    if _partial(store).exists():
        raise ValueError(f"{store} and {_partial(store).name} both exist: delete the one that is not wanted")
    stat = (store / "data.mdb").stat()
    _ENVIRONMENTS.pop((stat.st_dev, stat.st_ino))[1].close()
    os.replace(store, _partial(store))
    with _writing(store, settings) as environment, environment.begin(write=True) as transaction:
        for video_id, row in list(_rows(transaction)):
            if row["status"] == "failed":
                transaction.delete(ROW + video_id.encode())
    return True


def _compare(store: Path, found: dict, expected: dict) -> None:
    differ = [key for key in expected if found.get(key) != expected[key]]
    if differ:
        was, wanted = ({key: side.get(key) for key in differ} for side in (found, expected))
        raise ValueError(f"{store} was built with other settings: it has {was}, asked for was {wanted}")


@contextmanager
def _writing(store: Path, settings: dict):
    """The environment that is being built, this process its only writer."""
    folder = _partial(store)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _full_disk(store), lmdb.open(str(folder), map_size=FIRST_MAP, lock=False) as environment:
            with environment.begin(write=True) as transaction:
                found = json.loads(transaction.get(SETTINGS, b"null"))
                if found is None:
                    transaction.put(SETTINGS, json.dumps(settings, sort_keys=True).encode())
            _compare(folder, found or settings, settings)
            yield environment
    except BlockingIOError:
        raise OSError(f"another process is extracting into {store}") from None
    finally:
        os.close(lock)


@contextmanager
def _full_disk(store: Path):
    try:
        yield
    except lmdb.Error as error:
        raise OSError(
            errno.ENOSPC,
            f"{store} could not be written ({error}); {shutil.disk_usage(store.parent).free:,} bytes are free. "
            "The finished videos are safe: make room and run again",
        ) from None


def _current(row: dict | None, file: Path, store: Path) -> bool:
    return row is not None and row["bytes"] == file.stat().st_size and row["file"] == _relative(file, store)


def _relative(file: Path, store: Path) -> str:
    root = store.resolve().parent
    return str(file.resolve().relative_to(root) if file.resolve().is_relative_to(root) else file)


def _check_space(pool: DecodePool, jobs: Mapping[str, Job], store: Path, probes: int = 4) -> None:
    """Read a few of the files, and stop where the disk has no room for all at their size."""
    if not jobs:
        return
    spread = list(jobs.values())[:: max(1, len(jobs) // probes)][:probes]
    sizes = [sum(_pages(len(blob)) for blob in blobs) for _, blobs in pool.run(spread) if blobs]
    needed = int(np.mean(sizes or [0]) * len(jobs))
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{store} needs about {needed:,} bytes, {free:,} are free")
    tqdm.write(f"{store.name}: {len(jobs):,} videos to read, about {needed / 1e6:,.0f} MB", file=sys.stderr)


def _pages(size: int) -> int:
    """Bytes LMDB takes for a value: whole pages where it is larger than half a page."""
    return size + 64 if size < 2000 else -(-(size + 16) // 4096) * 4096


def _fill(
    environment, pool: DecodePool, jobs: Mapping[str, Job], settings: dict, store: Path, done: int
) -> None:
    total, results = done + len(jobs), zip(jobs, pool.run(jobs.values()), strict=True)
    progress = iter(tqdm(results, total=total, initial=done, desc=f"extracting {store.name}", unit="video"))
    while batch := list(islice(progress, COMMIT)):
        entries = [(i, _row(i, jobs[i], info, store), blobs) for i, (info, blobs) in batch]
        while True:
            try:
                _commit(environment, settings["layout"], entries)
                break
            except lmdb.MapFullError:  # address space only: the file grows with what is in it
                environment.set_mapsize(2 * environment.info()["map_size"])


def _row(video_id: str, job: Job, info: dict, store: Path) -> dict:
    file = Path(job.path)
    about = {
        "video_id": video_id,
        "file": _relative(file, store),
        "status": "ok" if info["frames"] else "failed",
    }
    known = {key: info[key] for key in ROW_FIELDS}
    return {**about, "requested": job.count, **known, "bytes": file.stat().st_size}


def _commit(environment, layout: str, entries: list[tuple[str, dict, list[bytes]]]) -> None:
    with environment.begin(write=True) as transaction:
        for video_id, row, blobs in entries:
            for index in range(_stored(transaction, layout, video_id)):
                transaction.delete(_key(layout, video_id, index))
            for index, blob in enumerate(blobs):
                transaction.put(_key(layout, video_id, index), blob)
            transaction.put(ROW + video_id.encode(), json.dumps(row, sort_keys=True).encode())


def _table(wanted: list[str], store: FrameStore, frames: int) -> pd.DataFrame:
    missing = {"file": "", "status": "failed", "requested": frames, "bytes": 0, "frames": 0, "fps": 0.0}
    missing |= {"duration": 0.0, "width": 0, "height": 0, "decoder": "", "reason": NO_FILE}
    known = {row["video_id"]: row for row in store.rows().to_dict("records")}
    return pd.DataFrame([known.get(i) or {"video_id": i, **missing} for i in wanted], columns=COLUMNS)


def find_videos(root: Path | str, ids: Iterable[str] | None = None) -> dict[str, Path]:
    """The video files of a tree, matched by stem whatever the container and the folder.

    An id matches a file's whole name, its name without the last extension, its own name without a video extension
    or a final dot (DiDeMo's lists have both), and with or without ActivityNet's "v_". Of several files the one with a
    video's extension is taken, then the first by path; a warning counts such ids and names some.

    Args:
        ids: to look for; where None, every file that is not hidden: its stem, or where two share it the name with its
            extension.

    Returns:
        id -> file, in the order of `ids`; ids without a file are left out.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of videos at {root}")
    files = [file for file in root.rglob("*") if file.is_file() and not _hidden(file.relative_to(root))]
    files.sort(key=lambda file: (file.suffix.lower() not in VIDEO_SUFFIXES, str(file)))
    if ids is None:
        return _name_all(sorted(files), root)
    named: dict[str, list[Path]] = {}
    for file in files:
        for name in {file.name, file.name.rpartition(".")[0] or file.name}:
            named.setdefault(name, []).append(file)
    found = {video_id: hit for video_id in ids if (hit := _lookup(video_id, named))}
    doubles = [video_id for video_id, hits in found.items() if len(hits) > 1]
    if doubles:
        examples = "; ".join(f"{i}: {', '.join(str(f) for f in found[i])}" for i in doubles[:3])
        warnings.warn(f"{len(doubles)} ids with several files, the first is taken: {examples}", stacklevel=2)
    return {video_id: hits[0] for video_id, hits in found.items()}


def _lookup(video_id: str, named: Mapping[str, list[Path]]) -> list[Path]:
    stem, dot, suffix = video_id.rpartition(".")
    bare = stem if dot and (not suffix or f".{suffix.lower()}" in VIDEO_SUFFIXES) else video_id
    names = (video_id, bare, bare.removeprefix("v_"), f"v_{bare}")
    return next((named[name] for name in names if name in named), [])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _name_all(files: list[Path], root: Path) -> dict[str, Path]:
    stems, names = Counter(file.stem for file in files), Counter(file.name for file in files)
    named = {}
    for file in files:
        short = file.stem if stems[file.stem] == 1 else file.name
        video_id = short if names[file.name] == 1 else "__".join(file.relative_to(root).parts)
        if video_id in named:
            raise ValueError(f"two files would have the id {video_id!r}: {named[video_id]} and {file}")
        named[video_id] = file
    return named
