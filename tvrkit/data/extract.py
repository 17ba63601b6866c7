"""Building a frame store: videos found in any tree, every one read once.

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
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from itertools import islice, tee
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pandas as pd
from tqdm import tqdm

from tvrkit.data import decoders
from tvrkit.data import store as stores
from tvrkit.data.decoders import DecodePool, FrameSettings, Result, VideoInfo
from tvrkit.files import alone, expect

NO_FILE, CHANGED = "no file found", "it changed while it was read: read again next time"
END = 1 << 16  # bytes of head and of tail that a file is known by
MAP = 1 << 40  # bytes of address space, more than any store has: no disk is taken
COMMIT = 64  # videos per transaction
PROBES = 4  # videos read for the estimate of the store's size
PAGE = 4096  # bytes; LMDB gives whole pages to a frame, half of the last one empty as a rule
SUFFIXES = "3gp asf avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
Entry = tuple[dict, list[bytes]]  # a row and its frames
VIDEO_SUFFIXES = {f".{suffix}" for suffix in SUFFIXES.split()}


def extract(
    files: Mapping[str, Path | None],
    store: Path | str,
    settings: FrameSettings,
    *,
    workers: int = 2,
    timeout: float = decoders.TIMEOUT,
) -> pd.DataFrame:
    """Read every video into the frame store.

    Called again it goes on where it was stopped. On a finished store it adds what is new, and reads
    again what has changed, had failed or was damaged. No file stops the others.

    Args:
        files: video id -> file, or None where there is none.
        store: folder of the store.
        settings: what is read of each video; kept in the store, and in the data set's card.
        workers: processes; in a launch, of each of its processes, see `shared_decoding`.
        timeout: seconds per file and decoder, see `DecodePool`.

    Returns:
        A row per video in the order of `files`: video_id, file (relative to the store's folder
        where it lies inside it, escaped, see `store.escape`), status "ok" or "failed", reason,
        requested, frames, fps, duration (s), width, height, decoder, why, bytes, hash (of the
        frames, see `store.digest`). A damaged file that gave frames is "ok" with a reason. One that
        has another size, time, head or tail after it was read than before gave none.

    Raises:
        ValueError: an unusable id, or the store was built with other settings; the message says
            both.
        OSError: too little space, before anything is written or while writing (what was finished
            stays), or another process is at work on this store.
    """
    builder = Builder(Path(store), settings)
    there = {i: Path(p) for i, p in files.items() if stores.check_id(i) and p and os.path.isfile(p)}
    rows = builder.rows(builder.store) if builder.store.exists() else None
    if rows is None or _left(rows, there):
        builder.store.parent.mkdir(parents=True, exist_ok=True)
        lock = builder.store.with_name(f".{builder.store.name}.lock")
        with alone(lock, f"another process is extracting into {store}"):
            rows = builder.build(there, decoders.new_pool(workers, timeout))
    made = [rows.get(i) or builder.row(i, None, [], (VideoInfo(reason=NO_FILE), [])) for i in files]
    return pd.DataFrame(made).drop(columns="state")


def _left(rows: Mapping[str, dict], files: Mapping[str, Path]) -> dict[str, Path]:
    """The files that no row tells all is well of, in the order in which they are read."""
    ok = {i: r.get("state") for i, r in rows.items() if r.get("hash") and not r.get("reason")}
    return {i: files[i] for i in sorted(files) if i not in ok or ok[i] != _state(files[i])[:3]}


def _state(file: Path) -> list:
    """What a file is known by, wherever it lies: size, time of the last change (ns), a hash of head
    and tail. Last what no program can set, the time at which anything about it changed: for a
    comparison within minutes only. Empty where it can't be read."""
    try:
        with open(file, "rb") as opened:
            stat, ends = os.fstat(opened.fileno()), opened.read(END)
            opened.seek(max(0, stat.st_size - END))
            known = sha256(ends + opened.read(END)).hexdigest()
            return [stat.st_size, stat.st_mtime_ns, known, stat.st_ctime_ns]
    except OSError:
        return []


class Builder:
    """Of one store, with one kind of settings."""

    def __init__(self, store: Path, settings: FrameSettings):
        self.store, self.partial, self.settings = store, stores.partial(store), settings
        built_with = asdict(settings) | {"decoder": decoders.decoder_versions(settings.decoder)}
        self.built_with = json.loads(json.dumps(built_with))  # as it is read back

    def rows(self, store: Path) -> dict[str, dict]:
        """The rows of a store that is there.

        Raises:
            ValueError: it was built with other settings.
        """
        read, wanted = stores.FrameStore(store), self.built_with
        has = {"chroma": "444"} | read.settings  # of stores from before there was a choice
        differ = [key for key in wanted if has.get(key) != wanted[key]]
        has, wanted = ({key: side.get(key) for key in differ} for side in (has, wanted))
        expect(not differ, store, f"a store built with {wanted}", has)
        return read.rows()

    def build(self, files: Mapping[str, Path], pool: DecodePool) -> dict[str, dict]:
        """What is left of the files, into a store that is being built until all are read. All rows
        of it: once the lock is released, another process may add to the store."""
        if self.store.exists():
            whole = not self.partial.exists()
            expect(whole, self.store, f"no {self.partial.name} beside it", "both: delete one")
            os.replace(self.store, self.partial)
        begun = (self.partial / "data.mdb").exists() and stores.FrameStore(self.partial).settings
        new = _left(self.rows(self.partial) if begun else {}, files)
        with self.writing() as environment, pool:
            self.check_space(list(new.values()), pool)
            done, title = len(files) - len(new), f"extracting {self.store.name}"
            bar = tqdm(self.read(new, pool), title, len(files), unit="video", initial=done)
            entries = iter(bar)
            while batch := list(islice(entries, COMMIT)):
                _commit(environment, batch)
        os.replace(self.partial, self.store)
        return self.rows(self.store)

    @contextmanager
    def writing(self) -> Iterator[lmdb.Environment]:
        """The environment that is being built."""
        self.partial.mkdir(exist_ok=True)
        stores.release(self.partial)
        try:
            with lmdb.open(os.fsencode(self.partial), map_size=MAP, lock=False) as environment:
                with environment.begin(write=True) as transaction:
                    described = json.dumps(self.built_with, sort_keys=True).encode()
                    transaction.put(stores.SETTINGS, described)
                yield environment
        except lmdb.Error as error:
            free = shutil.disk_usage(self.partial).free
            why = f"{self.store} could not be written: {error}; {free:,} bytes are free"
            advice = "What was finished is safe: make room and run again"
            raise OSError(errno.ENOSPC, f"{why}. {advice}") from None

    def check_space(self, paths: list[Path], pool: DecodePool) -> None:
        """Read a few of the files, say how large the store will be, and stop where the disk has no
        room for it."""
        some = paths[:: max(1, len(paths) // PROBES)][:PROBES]
        read = pool.run(some, self.settings)
        sizes = [sum(len(frame) + PAGE // 2 for frame in frames) for _, frames in read]
        needed = int(np.mean(sizes or [0]) * len(paths))
        free = shutil.disk_usage(self.store.parent).free
        if needed > free:
            needs = f"{self.store} needs about {needed:,} bytes, {free:,} are free"
            raise OSError(errno.ENOSPC, needs)
        size = f"{len(paths):,} videos to read, about {needed / 1e6:,.0f} MB"
        tqdm.write(f"{self.store.name}: {size}", file=sys.stderr)

    def read(self, files: Mapping[str, Path], pool: DecodePool) -> Iterator[Entry]:
        """A row and the frames of each file. One that is not the same after as before has none."""
        here, ahead = tee((i, path, _state(path)) for i, path in files.items())
        results = pool.run((path for _, path, _ in ahead), self.settings)
        for (video_id, path, state), result in zip(here, results, strict=False):
            if result[1] and not (state and _state(path) == state):
                result = VideoInfo(reason=CHANGED), []
            yield self.row(video_id, path, state, result), result[1]

    def row(self, video_id: str, file: Path | None, state: list, result: Result) -> dict:
        """A line of videos.jsonl, and the file's `_state`."""
        (info, frames), name, folder = result, str(file or ""), self.store.resolve().parent
        if file and file.resolve().is_relative_to(folder):
            name = str(file.resolve().relative_to(folder))
        row: dict[str, Any] = {"video_id": video_id, "file": stores.escape(name)}
        row |= {"status": "ok" if frames else "failed", "reason": info.reason}
        row |= {"requested": self.settings.frames, **asdict(info)}
        row["bytes"], row["hash"] = state[0] if state else 0, "".join(map(stores.digest, frames))
        return row | {"state": state[:3]}


def _commit(environment: lmdb.Environment, entries: list[Entry]) -> None:
    """All rows and their frames in one transaction."""
    with environment.begin(write=True) as transaction:
        for row, frames in entries:
            video_id = row["video_id"]
            for index in range(stores.stored(transaction, "kit", video_id)):
                transaction.delete(stores.frame_key("kit", video_id, index))
            for index, frame in enumerate(frames):
                transaction.put(stores.frame_key("kit", video_id, index), frame)
            transaction.put(stores.ROW + video_id.encode(), json.dumps(row).encode())


def who_read(rows: pd.DataFrame) -> dict[str, int]:
    """How many videos each decoder read, by why it was that one; empty for a store of others."""
    read = rows[rows["frames"] > 0].reindex(columns=["decoder", "why"]).dropna().astype(str)
    return (read["decoder"] + ": " + read["why"]).value_counts().sort_index().to_dict()


def walk(root: Path | str, **options: bool) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` of a folder of videos; what can't be read is warned of.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"no folder of videos at {root}")

    def warn(error: OSError) -> None:
        warnings.warn(f"passed over: {error}", stacklevel=3)

    return os.walk(root, onerror=warn, **options)


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
    paths = sorted(Path(folder, name) for folder, _, names in walk(root) for name in names)
    seen = [p for p in paths if not any(part[0] == "." for part in p.relative_to(root).parts)]
    files = [path for path in seen if path.is_file() or not path.exists()]  # links to nowhere, too
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
        choices = map(stores.make_id, (*short, path, f"{path}__{len(named)}"))
        named[next(name for name in choices if name not in named)] = file
    return named
