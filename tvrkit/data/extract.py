"""Building a frame store: videos found in any tree, every one read once, in the kit's layout or
HMMC's.

The store is built in a temporary folder and renamed when whole. A video's frames and its row enter
in one transaction, and always in the same order, so that after a kill at any moment the next run
goes on with the same result as an unbroken one.
"""

import errno
import fcntl
import json
import os
import shutil
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
from tqdm import tqdm

from tvrkit.data import store as stores
from tvrkit.data.decoders import TIMEOUT, DecodePool, FrameSettings, VideoInfo, decoder_versions
from tvrkit.settings import choose

NO_FILE = "no file found"
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

    Called again it goes on where it was stopped. On a finished store it adds what is new, reads
    again what has changed, and tries once more what had failed.

    Args:
        files: video id -> file, or None where there is none.
        store: folder of the store.
        settings: what is read of each video; kept in the store, and in the data set's card.
        layout: of the keys, see `FrameStore`.
        workers: processes.
        timeout: seconds per file and decoder, see `DecodePool`.

    Returns:
        A row per video in the order of `files`: video_id, file (relative to the store's folder
        where it lies inside it), status "ok" or "failed", reason, requested, frames, fps, duration
        (s), width, height, decoder, bytes. A damaged file that gave frames is "ok" with a reason.

    Raises:
        ValueError: an unusable id, or the store was built with other settings; the message says
            both.
        OSError: too little space, before anything is written or while writing (what was finished
            stays), or another process is at work on this store.
    """
    store = Path(store)
    built_with = asdict(settings) | {"layout": choose("layout", layout, stores.LAYOUTS)}
    built_with["decoder"] = decoder_versions(settings.decoder)
    there = {i: Path(path) for i, path in files.items() if stores.check_id(i) and path}
    there = {i: path for i, path in there.items() if path.is_file()}
    if not store.exists() or _reopen(store, there, built_with):
        with _writing(store, built_with) as environment, DecodePool(workers, timeout) as pool:
            with environment.begin() as transaction:
                rows = stores.read_rows(transaction)
            new = {i: there[i] for i in sorted(there) if not _is_current(rows.get(i), there[i])}
            _check_space(store, list(new.values()), settings, pool)
            results = zip(new.items(), pool.run(new.values(), settings), strict=True)
            entries: Iterator[tuple[dict, list[bytes]]] = (
                (_row(video_id, path, settings.frames, store, info), frames)
                for (video_id, path), (info, frames) in results
            )
            done, title = len(files) - len(new), f"extracting {store.name}"
            entries = iter(tqdm(entries, title, len(files), unit="video", initial=done))
            while batch := list(islice(entries, COMMIT)):
                _commit(environment, layout, batch)
        os.replace(stores.partial(store), store)
    rows, lost = _rows(store), VideoInfo(reason=NO_FILE)
    return pd.DataFrame([rows.get(i) or _row(i, None, settings.frames, store, lost) for i in files])


def _reopen(store: Path, files: Mapping[str, Path], built_with: dict) -> bool:
    """Take a finished store back to being built, if there is anything to do."""
    _compare(store, stores.FrameStore(store).settings, built_with)
    rows = _rows(store)
    good = {i for i in files if _is_current(rows.get(i), files[i]) and rows[i]["status"] == "ok"}
    if len(good) == len(files):
        return False
    if stores.partial(store).exists():
        both = f"{store} and {stores.partial(store).name} both exist"
        raise ValueError(f"{both}: delete the one that is not wanted")
    os.replace(store, stores.partial(store))
    with _writing(store, built_with) as environment, environment.begin(write=True) as transaction:
        for video_id in files.keys() - good:
            if rows.get(video_id, {}).get("status") == "failed":
                transaction.delete(stores.ROW + video_id.encode())
    return True


def _rows(store: Path) -> dict[str, dict]:
    return {row["video_id"]: row for row in stores.FrameStore(store).rows().to_dict("records")}


def _compare(store: Path, has: dict, wanted: dict) -> None:
    differ = [key for key in wanted if has.get(key) != wanted[key]]
    if differ:
        has, wanted = ({key: side.get(key) for key in differ} for side in (has, wanted))
        why = "was built with other settings"
        raise ValueError(f"{store} {why}: it has {has}, asked for is {wanted}")


@contextmanager
def _writing(store: Path, built_with: dict) -> Iterator[lmdb.Environment]:
    """The environment that is being built, with this process as its only writer."""
    folder = stores.partial(store)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stores.release(folder)
        with lmdb.open(str(folder), map_size=FIRST_MAP, lock=False) as environment:
            with environment.begin(write=True) as transaction:
                described = json.dumps(built_with, sort_keys=True).encode()
                transaction.put(stores.SETTINGS, described, overwrite=False)
                has = json.loads(transaction.get(stores.SETTINGS, described))
            _compare(folder, has, built_with)
            yield environment
    except BlockingIOError:
        raise OSError(f"another process is extracting into {store}") from None
    except lmdb.Error as error:
        free = shutil.disk_usage(folder).free
        why = f"{store} could not be written: {error}; {free:,} bytes are free"
        advice = "What was finished is safe: make room and run again"
        raise OSError(errno.ENOSPC, f"{why}. {advice}") from None
    finally:
        os.close(lock)


def _is_current(row: dict | None, file: Path) -> bool:
    """Whether the row tells of this very file, wherever it lies by now."""
    known = row and (row["bytes"], Path(row["file"]).name)
    return known == (file.stat().st_size, file.name)


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


def _row(video_id: str, file: Path | None, requested: int, store: Path, info: VideoInfo) -> dict:
    """A line of videos.jsonl."""
    folder = store.resolve().parent
    inside = file and file.resolve().is_relative_to(folder)
    name = file.resolve().relative_to(folder) if file and inside else file or ""
    status, size = "ok" if info.frames else "failed", file.stat().st_size if file else 0
    row = {"video_id": video_id, "file": str(name), "status": status, "reason": info.reason}
    return {**row, "requested": requested, **asdict(info), "bytes": size}


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
    paths = sorted(root.rglob("*"))
    files = [path for path in paths if path.is_file() and not _is_hidden(path, root)]
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
        short = file.stem if stems[file.stem] == 1 else file.name
        video_id = short if names[file.name] == 1 else "__".join(file.relative_to(root).parts)
        if video_id in named:
            both = f"{named[video_id]} and {file}"
            raise ValueError(f"two files would have the id {video_id!r}: {both}")
        named[video_id] = file
    return named
