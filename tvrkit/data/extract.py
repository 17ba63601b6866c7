"""Building a frame store: videos found in any tree, every one read once, in the kit's layout or
HMMC's.

The store is built in a temporary folder and renamed when whole. A video's frames and its row enter
in one transaction, and always in the same order, so that after a kill at any moment the next run
goes on with the same result as an unbroken one.
"""

import errno
import json
import os
import shutil
import sys
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from tvrkit.data import store as stores
from tvrkit.data.decoders import TIMEOUT, DecodePool, FrameSettings, VideoInfo, decoder_versions
from tvrkit.settings import choose

NO_FILE, CHANGED = "no file found", "it changed while it was read: read again next time"
END = 1 << 16  # bytes of head and of tail that a file is known by
FIRST_MAP = 1 << 28  # bytes of address space to begin with: doubled when full, no disk is taken
COMMIT = 64  # videos per transaction
PROBES = 4  # videos read for the estimate of the store's size
PAGE = 4096  # bytes; LMDB gives whole pages to values larger than half of one
SUFFIXES = "3gp asf avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = {f".{suffix}" for suffix in SUFFIXES.split()}


def extract(
    files: Mapping[str, Path | None],
    store: Path | str,
    settings: FrameSettings,
    *,
    layout: str = "kit",
    workers: int = 2,
    timeout: float = TIMEOUT,
) -> pd.DataFrame:
    """Read every video into the frame store.

    Called again it goes on where it was stopped. On a finished store it adds what is new, and reads
    again what has changed, had failed or was damaged. No file stops the others.

    Args:
        files: video id -> file, or None where there is none.
        store: folder of the store.
        settings: what is read of each video; kept in the store, and in the data set's card.
        layout: of the keys, see `FrameStore`.
        workers: processes.
        timeout: seconds per file and decoder, see `DecodePool`.

    Returns:
        A row per video in the order of `files`: video_id, file (relative to the store's folder
        where it lies inside it, escaped, see `store.escape`), status "ok" or "failed", reason,
        requested, frames, fps, duration (s), width, height, decoder, why, bytes. A damaged file
        that gave frames is "ok" with a reason. One that has another size, time, head or tail after
        it was read than before gave none.

    Raises:
        ValueError: an unusable id, or the store was built with other settings; the message says
            both.
        OSError: too little space, before anything is written or while writing (what was finished
            stays), or another process is at work on this store.
    """
    store = Path(store)
    built_with = {**asdict(settings), "layout": choose("layout", layout, stores.LAYOUTS)}
    built_with["decoder"] = decoder_versions(settings.decoder)
    built_with = json.loads(json.dumps(built_with))  # as it is read back
    known = {i: Path(path) for i, path in files.items() if stores.check_id(i) and path}
    there = {i: path for i, path in known.items() if os.path.isfile(path)}
    if not store.exists() or _left(_finished(store, built_with), there):
        lock = FileLock(store.with_name(f".{store.name}.lock"), timeout=0)
        store.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock:
                _build(there, store, settings, built_with, DecodePool(workers, timeout))
        except Timeout:
            raise OSError(f"another process is extracting into {store}") from None
    rows, lost = _finished(store, built_with), VideoInfo(reason=NO_FILE)
    table = [rows.get(i) or _row(i, None, 0, settings.frames, store, lost) for i in files]
    return pd.DataFrame(table).drop(columns="state", errors="ignore")


def _finished(store: Path, built_with: dict) -> dict[str, dict]:
    """The rows of a finished store of these settings."""
    read = stores.FrameStore(store)
    _compare(store, read.settings, built_with)
    with read.begin() as transaction:
        return stores.read_rows(transaction)


def _left(rows: Mapping[str, dict], files: Mapping[str, Path]) -> dict[str, Path]:
    """The files that no row tells all is well of, in the order in which they are read."""
    good = {i: row["state"] for i, row in rows.items() if row["frames"] and not row["reason"]}
    return {i: files[i] for i in sorted(files) if i not in good or good[i] != _state(files[i])}


def _state(file: Path) -> list | None:
    """What a file is known by, wherever it lies: size, time of the last change (ns), a hash of head
    and tail. None where it can't be read."""
    try:
        with open(file, "rb") as opened:
            stat, ends = os.fstat(opened.fileno()), opened.read(END)
            opened.seek(max(0, stat.st_size - END))
            return [stat.st_size, stat.st_mtime_ns, sha256(ends + opened.read(END)).hexdigest()]
    except OSError:
        return None


def _build(
    files: Mapping[str, Path], store: Path, settings: FrameSettings, built_with: dict, pool
) -> None:
    """What is left of the files, into a store that is being built until all are read."""
    partial = stores.partial(store)
    if store.exists() and partial.exists():
        raise ValueError(f"{store} and {partial.name} both exist: delete the one not wanted")
    if store.exists():
        os.replace(store, partial)
    with _writing(store, built_with) as environment, pool:
        with environment.begin() as transaction:
            new = _left(stores.read_rows(transaction), files)
        _check_space(store, list(new.values()), settings, pool)
        entries: Iterator = _read(new, store, settings, pool)
        done, title = len(files) - len(new), f"extracting {store.name}"
        entries = iter(tqdm(entries, title, len(files), unit="video", initial=done))
        while batch := list(islice(entries, COMMIT)):
            _commit(environment, built_with["layout"], batch)
    os.replace(partial, store)


def _read(
    files: Mapping[str, Path], store: Path, settings: FrameSettings, pool: DecodePool
) -> Iterator[tuple[dict, list[bytes]]]:
    """A row and the frames of each file. One that is not the same after as before has none."""
    seen: deque[tuple] = deque()  # what is being read

    def paths() -> Iterator[Path]:
        for video_id, path in files.items():
            seen.append((video_id, path, _state(path)))
            yield path

    for result in pool.run(paths(), settings):
        (info, frames), (video_id, path, state) = result, seen.popleft()
        if frames and (state is None or _state(path) != state):
            info, frames = VideoInfo(reason=CHANGED), []
        row = _row(video_id, path, state[0] if state else 0, settings.frames, store, info)
        yield row | {"state": state}, frames


def _compare(store: Path, has: dict, wanted: dict) -> None:
    differ = [key for key in wanted if has.get(key) != wanted[key]]
    if differ:
        has, wanted = ({key: side.get(key) for key in differ} for side in (has, wanted))
        why = "was built with other settings"
        raise ValueError(f"{store} {why}: it has {has}, asked for is {wanted}")


@contextmanager
def _writing(store: Path, built_with: dict) -> Iterator[lmdb.Environment]:
    """The environment that is being built."""
    folder = stores.partial(store)
    folder.mkdir(exist_ok=True)
    stores.release(folder)
    try:
        with lmdb.open(str(folder), map_size=FIRST_MAP, lock=False) as environment:
            with environment.begin(write=True) as transaction:
                described = json.dumps(built_with, sort_keys=True).encode()
                transaction.put(stores.SETTINGS, described, overwrite=False)
                has = json.loads(transaction.get(stores.SETTINGS, described))
            _compare(folder, has, built_with)
            yield environment
    except lmdb.Error as error:
        free = shutil.disk_usage(folder).free
        why = f"{store} could not be written: {error}; {free:,} bytes are free"
        advice = "What was finished is safe: make room and run again"
        raise OSError(errno.ENOSPC, f"{why}. {advice}") from None


def _check_space(store: Path, paths: list[Path], settings: FrameSettings, pool: DecodePool) -> None:
    """Read a few of the files, say how large the store will be, and stop where the disk has no room
    for it."""
    some = paths[:: max(1, len(paths) // PROBES)][:PROBES]
    sizes = [sum(map(_disk_space, frames)) for _, frames in pool.run(some, settings)]
    needed = int(np.mean(sizes or [0]) * len(paths))
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{store} needs about {needed:,} bytes, {free:,} are free")
    size = f"{len(paths):,} videos to read, about {needed / 1e6:,.0f} MB"
    tqdm.write(f"{store.name}: {size}", file=sys.stderr)


def _disk_space(frame: bytes) -> int:
    return len(frame) if len(frame) < PAGE // 2 else -(-len(frame) // PAGE) * PAGE


def _commit(environment, layout: str, entries: list[tuple[dict, list[bytes]]]) -> None:
    """All rows and their frames in one transaction."""
    try:
        with environment.begin(write=True) as transaction:
            for row, frames in entries:
                video_id = row["video_id"]
                for index in range(stores.stored(transaction, layout, video_id)):
                    transaction.delete(stores.frame_key(layout, video_id, index))
                for index, frame in enumerate(frames):
                    transaction.put(stores.frame_key(layout, video_id, index), frame)
                transaction.put(stores.ROW + video_id.encode(), json.dumps(row).encode())
    except lmdb.MapFullError:  # nothing was written
        environment.set_mapsize(2 * environment.info()["map_size"])
        _commit(environment, layout, entries)


def _row(
    video_id: str, file: Path | None, size: int, requested: int, store: Path, info: VideoInfo
) -> dict:
    """A line of videos.jsonl."""
    name, folder = str(file or ""), store.resolve().parent
    if file and file.resolve().is_relative_to(folder):
        name = str(file.resolve().relative_to(folder))
    status, told = "ok" if info.frames else "failed", asdict(info)
    row = {"video_id": video_id, "file": stores.escape(name), "status": status}
    return {**row, "reason": info.reason, "requested": requested, **told, "bytes": size}


def who_read(rows: pd.DataFrame) -> dict[str, int]:
    """How many videos each decoder read, by why it was that one; empty for a store of others."""
    read = rows[rows["frames"] > 0].reindex(columns=["decoder", "why"]).dropna().astype(str)
    return (read["decoder"] + ": " + read["why"]).value_counts().sort_index().to_dict()


def find_videos(root: Path | str, ids: Iterable[str] | None = None) -> dict[str, Path]:
    """The video files of a tree, matched by stem whatever the container and the folder.

    An id stands for a file of that name, with any extension or none. An id that itself ends in a
    video extension or a bare dot (DiDeMo's lists have both) matches by its stem as well, and
    ActivityNet's "v_" may be there or not. Of several files for an id, one with a video extension
    is taken, then the first by path; a warning counts such ids and names some.

    Args:
        root: folder that is searched with all its folders; hidden files are passed over.
        ids: to look for. None: every file; its id is its stem, or its whole name where two stems
            are the same.

    Returns:
        id -> file, in the order of `ids`, without those that have no file.

    Raises:
        FileNotFoundError: no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of videos at {root}")
    walk = os.walk(root, onerror=lambda error: warnings.warn(str(error), stacklevel=3))
    paths = sorted(Path(folder, name) for folder, _, names in walk for name in names)
    # links to nowhere have a row too
    paths = [path for path in paths if path.is_file() or not path.exists()]
    files = [path for path in paths if not _is_hidden(path, root)]
    if ids is None:
        return _name_all(files, root)
    files.sort(key=lambda file: file.suffix.lower() not in VIDEO_SUFFIXES)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        for name in {file.name, file.name.rpartition(".")[0] or file.name}:
            by_name[name].append(file)
    matches = {video_id: paths for video_id in ids if (paths := _look_up(video_id, by_name))}
    doubles = [f"{i}: {', '.join(map(str, paths))}" for i, paths in matches.items() if paths[1:]]
    if doubles:
        some = "; ".join(doubles[:3])
        warnings.warn(f"{len(doubles)} ids have several files: {some}", stacklevel=2)
    return {video_id: paths[0] for video_id, paths in matches.items()}


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _look_up(video_id: str, by_name: Mapping[str, list[Path]]) -> list[Path]:
    stem, dot, suffix = video_id.rpartition(".")
    bare = stem if dot and (not suffix or f".{suffix.lower()}" in VIDEO_SUFFIXES) else video_id
    names = (video_id, bare, bare.removeprefix("v_"), f"v_{bare}")
    return next((by_name[name] for name in names if name in by_name), [])


def _name_all(files: list[Path], root: Path) -> dict[str, Path]:
    """By stem, by name where two stems are the same, by the whole path where two names are."""
    stems, names = Counter(file.stem for file in files), Counter(file.name for file in files)
    named: dict[str, Path] = {}
    for file in files:
        path = "__".join(file.relative_to(root).parts)
        short = [file.stem] * (stems[file.stem] == 1) + [file.name] * (names[file.name] == 1)
        choices = (stores.make_id(name) for name in (*short, path, f"{path}__{len(named)}"))
        named[next(name for name in choices if name not in named)] = file
    return named
