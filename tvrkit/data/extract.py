"""Building a frame store: videos found in any tree, every one read once, in the kit's layout or
HMMC's.

The store is built in a temporary folder and renamed when whole. A video's frames and its row enter
in one transaction, and always in the same order, so that after a kill at any moment the next run
goes on with the same result as an unbroken one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd
from tqdm import tqdm

from tvrkit.data.decoders import DecodePool, Job, decoder_versions
from tvrkit.data.sampling import SAMPLERS
from tvrkit.data.store import (
    LAYOUTS,
    ROW,
    SETTINGS,
    FrameStore,
    check_id,
    frame_key,
    partial,
    read_rows,
    release,
    stored,
)
from tvrkit.settings import choose

__all__ = ["NO_FILE", "FrameStore", "check_id", "extract", "find_videos"]

NO_FILE = "no file found"
FIRST_MAP = 1 << 28  # bytes of address space to begin with: doubled when full, no disk is taken
COMMIT = 64  # videos per transaction
PROBES = 4  # videos read for the estimate of the store's size
PAGE = 4096  # bytes; LMDB gives whole pages to values larger than half of one
VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905
)


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
    """Read every video into the frame store.

    Called again it goes on where it was stopped. On a finished store it adds what is new, reads
    again what has changed, and tries once more what had failed.

    Args:
        files: video id -> file, or None where there is none.
        store: folder of the store.
        frames: per video, chosen by `sampling` over its time; a shorter video gives all it has.
        short_side: pixels that larger videos are scaled down to; None keeps every size.
        workers: processes.
        timeout: seconds per file and decoder, see `DecodePool`.
        quality: of the JPEG files, 1 to 100.
        layout: of the keys, see `FrameStore`.

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
    settings = {
        "frames": frames,
        "short_side": short_side,
        "quality": quality,
        "decoder": decoder_versions(),
    }
    settings["sampling"] = choose("sampling", sampling, SAMPLERS)
    settings["layout"] = choose("layout", layout, LAYOUTS)
    there = {
        i: Path(file) for i, file in files.items() if check_id(i) and file and Path(file).is_file()
    }
    if not store.exists() or _reopen(there, store, settings):
        with _writing(store, settings) as environment:
            with environment.begin() as transaction:
                known = read_rows(transaction)
            new = sorted(
                video_id
                for video_id, file in there.items()
                if not _current(known.get(video_id), file)
            )
            jobs = {i: Job(str(there[i]), frames, sampling, short_side, quality) for i in new}
            with DecodePool(workers, timeout) as pool:
                _check_space(pool, jobs, store)
                _fill(environment, pool, jobs, layout, store, len(files) - len(jobs))
        os.replace(partial(store), store)
    known = _known(store)
    return pd.DataFrame(
        [known.get(video_id) or _row(video_id, None, frames, store, {}) for video_id in files]
    )


def _reopen(files: Mapping[str, Path], store: Path, settings: dict) -> bool:
    """Take a finished store back to being built, if there is anything to do."""
    _compare(store, FrameStore(store).settings, settings)
    rows = _known(store)
    if all(_current(rows.get(i), file) and rows[i]["status"] == "ok" for i, file in files.items()):
        return False
    if partial(store).exists():
        raise ValueError(
            f"{store} and {partial(store).name} both exist: delete the one that is not wanted"
        )
    os.replace(store, partial(store))
    with _writing(store, settings) as environment, environment.begin(write=True) as transaction:
        for video_id in files:
            if video_id in rows and rows[video_id]["status"] == "failed":
                transaction.delete(ROW + video_id.encode())
    return True


def _known(store: Path) -> dict[str, dict]:
    return {row["video_id"]: row for row in FrameStore(store).rows().to_dict("records")}


def _compare(store: Path, found: dict, expected: dict) -> None:
    differ = [key for key in expected if found.get(key) != expected[key]]
    if differ:
        has, asked = ({key: side.get(key) for key in differ} for side in (found, expected))
        raise ValueError(
            f"{store} was built with other settings: it has {has}, asked for is {asked}"
        )


@contextmanager
def _writing(store: Path, settings: dict) -> Iterator[lmdb.Environment]:
    """The environment that is being built, with this process as its only writer."""
    folder = partial(store)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        release(folder)
        with lmdb.open(str(folder), map_size=FIRST_MAP, lock=False) as environment:
            with environment.begin(write=True) as transaction:
                found = json.loads(transaction.get(SETTINGS, b"null"))
                if found is None:
                    transaction.put(SETTINGS, json.dumps(settings, sort_keys=True).encode())
            _compare(folder, found or settings, settings)
            yield environment
    except BlockingIOError:
        raise OSError(f"another process is extracting into {store}") from None
    except lmdb.Error as error:
        free = shutil.disk_usage(folder).free
        why = f"{store} could not be written: {error}; {free:,} bytes are free"
        raise OSError(
            errno.ENOSPC, f"{why}. What was finished is safe: make room and run again"
        ) from None
    finally:
        os.close(lock)


def _current(row: dict | None, file: Path) -> bool:
    """Whether the row tells of this very file, wherever it lies by now."""
    return (
        row is not None
        and row["bytes"] == file.stat().st_size
        and Path(row["file"]).name == file.name
    )


def _check_space(pool: DecodePool, jobs: Mapping[str, Job], store: Path) -> None:
    """Read a few of the files, say how large the store will be, and stop where the disk has no room
    for it."""
    spread = list(jobs.values())[:: max(1, len(jobs) // PROBES)][:PROBES]
    sizes = [sum(map(_space, blobs)) for _, blobs in pool.run(spread)]
    needed = int(np.mean(sizes or [0]) * len(jobs))
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{store} needs about {needed:,} bytes, {free:,} are free")
    tqdm.write(
        f"{store.name}: {len(jobs):,} videos to read, about {needed / 1e6:,.0f} MB", file=sys.stderr
    )


def _space(blob: bytes) -> int:
    return len(blob) if len(blob) < PAGE // 2 else -(-len(blob) // PAGE) * PAGE


def _fill(
    environment, pool: DecodePool, jobs: Mapping[str, Job], layout: str, store: Path, done: int
) -> None:
    results = zip(jobs.items(), pool.run(jobs.values()), strict=True)
    about = {
        "desc": f"extracting {store.name}",
        "unit": "video",
        "total": done + len(jobs),
        "initial": done,
    }
    progress = iter(tqdm(results, **about))
    while batch := list(islice(progress, COMMIT)):
        entries = [
            (_row(video_id, Path(job.path), job.count, store, info), blobs)
            for (video_id, job), (info, blobs) in batch
        ]
        while not _commit(environment, layout, entries):
            environment.set_mapsize(2 * environment.info()["map_size"])


def _commit(environment, layout: str, entries: list[tuple[dict, list[bytes]]]) -> bool:
    """All entries in one transaction; False, and nothing is written, where the address space is too
    small."""
    try:
        with environment.begin(write=True) as transaction:
            for row, blobs in entries:
                video_id = row["video_id"]
                for index in range(stored(transaction, layout, video_id)):
                    transaction.delete(frame_key(layout, video_id, index))
                for index, blob in enumerate(blobs):
                    transaction.put(frame_key(layout, video_id, index), blob)
                transaction.put(ROW + video_id.encode(), json.dumps(row).encode())
    except lmdb.MapFullError:
        return False
    return True


def _row(video_id: str, file: Path | None, requested: int, store: Path, info: dict) -> dict:
    """A line of videos.jsonl; without a file, that of a missing one."""
    inside = file is not None and file.resolve().is_relative_to(store.resolve().parent)
    name = file.resolve().relative_to(store.resolve().parent) if inside else file or ""
    return {
        "video_id": video_id,
        "file": str(name),
        "status": "ok" if info.get("frames") else "failed",
        "reason": info.get("reason", NO_FILE),
        "requested": requested,
        **{key: info.get(key, 0) for key in ("frames", "fps", "duration", "width", "height")},
        "decoder": info.get("decoder", ""),
        "bytes": file.stat().st_size if file else 0,
    }


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
    files = [
        file for file in root.rglob("*") if file.is_file() and not _hidden(file.relative_to(root))
    ]
    if ids is None:
        return _name_all(sorted(files), root)
    files.sort(key=lambda file: (file.suffix.lower() not in VIDEO_SUFFIXES, file))
    named: dict[str, list[Path]] = {}
    for file in files:
        for name in {file.name, file.name.rpartition(".")[0] or file.name}:
            named.setdefault(name, []).append(file)
    found = {video_id: hits for video_id in ids if (hits := _lookup(video_id, named))}
    doubles = [
        f"{video_id}: {', '.join(map(str, hits))}"
        for video_id, hits in found.items()
        if len(hits) > 1
    ]
    if doubles:
        warnings.warn(
            f"{len(doubles)} ids have several files: {'; '.join(doubles[:3])}", stacklevel=2
        )
    return {video_id: hits[0] for video_id, hits in found.items()}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _lookup(video_id: str, named: Mapping[str, list[Path]]) -> list[Path]:
    stem, dot, suffix = video_id.rpartition(".")
    bare = stem if dot and (not suffix or f".{suffix.lower()}" in VIDEO_SUFFIXES) else video_id
    names = (video_id, bare, bare.removeprefix("v_"), f"v_{bare}")
    return next((named[name] for name in names if name in named), [])


def _name_all(files: list[Path], root: Path) -> dict[str, Path]:
    stems, names = Counter(file.stem for file in files), Counter(file.name for file in files)
    named: dict[str, Path] = {}
    for file in files:
        short = file.stem if stems[file.stem] == 1 else file.name
        video_id = short if names[file.name] == 1 else "__".join(file.relative_to(root).parts)
        if video_id in named:
            raise ValueError(
                f"two files would have the id {video_id!r}: {named[video_id]} and {file}"
            )
        named[video_id] = file
    return named
