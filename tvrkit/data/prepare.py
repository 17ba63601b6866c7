"""From annotation files and a folder of videos to a prepared data set."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from tvrkit.data import manifest
from tvrkit.data.annotations import load_annotations, resolve
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import NO_FILE, extract, find_videos
from tvrkit.data.splits import SplitReport, check_splits
from tvrkit.data.store import FrameStore, apart, escape
from tvrkit.files import expect, write_json_lines

# HMMC's stores; 64 for paragraphs
FRAMES = {"msrvtt": 30, "vatex": 30, "chvtt": 48, "didemo": 64, "activitynet": 64}
FRAMES_ELSEWHERE = 12
# seconds that are annotated; the loaders that CLIP4Clip and GLSCL released read the same
WINDOWS = {"didemo": (0.0, 31.0)}
SHORT_SIDE = 256  # pixels: enough for a random crop to any 224-pixel backbone


def frame_settings(frames: int | None, decoder: str | None, dataset: str = "") -> FrameSettings:
    """What is kept of each video: so many frames, read by this decoder; where None, what suits the
    data set."""
    count = FRAMES.get(dataset, FRAMES_ELSEWHERE) if frames is None else frames
    who, window = decoder or FrameSettings.decoder, WINDOWS.get(dataset)
    return FrameSettings(count, SHORT_SIDE, chroma="420", decoder=who, window=window)


def prepare(
    name: str,
    root: Path,
    videos: Path,
    out: Path,
    *,
    language: str | None = None,
    splits: Sequence[str] | None = None,
    frames: int | None = None,
    decoder: str | None = None,
    allow_partial: bool = False,
    workers: int = 2,
) -> tuple[manifest.Manifest, SplitReport]:
    """Read and check the annotations, find and extract the videos, write the folder that recipes
    name.

    Args:
        name: data set ("msrvtt", its default protocol) or protocol ("msrvtt/full").
        root: folder of the annotation files.
        videos: any tree of video files; or an LMDB frame store that is there already, in the kit's
            key layout or HMMC's (`<id>_<i>`), which is linked to and not copied.
        out: folder of the prepared data set.
        language: of the captions; the protocol's first where None.
        splits: only their files are read and checked; all of the protocol's where None.
        frames, decoder: see `frame_settings`.
        allow_partial: go on when counts or ids are not the protocol's; the card says so.
        workers: processes that decode.

    Raises:
        ValueError: what `load_annotations`, `check_splits` and `extract` refuse.
    """
    dataset, protocol = resolve(name)
    captions = load_annotations(dataset, root, protocol, language, splits)
    report = check_splits(captions, protocol, allow_partial)
    ids = captions["video_id"].unique()
    if videos.is_file() or (videos / "data.mdb").exists():
        rows = adopt_store(videos, out, ids)
    else:
        paths, settings = find_videos(videos, ids), frame_settings(frames, decoder, dataset)
        files = {video_id: paths.get(video_id) for video_id in ids}
        rows = extract(files, out / manifest.STORE, settings, workers=workers)
    return manifest.write(out, captions, rows, _card(report)), report


def adopt_store(store: Path, out: Path, ids: Iterable[str]) -> pd.DataFrame:
    """Link `out`/frames.lmdb to a frame store of other making; a row per id, as `extract` returns
    them.

    What only the video file knows (fps, duration, bytes) is 0; `requested` is the most frames any
    video has.

    Raises:
        ValueError: `out` has another store, or none of the ids has frames in this one.
    """
    out.mkdir(parents=True, exist_ok=True)
    link = out / manifest.STORE
    if not link.is_symlink() and not link.exists():
        link.symlink_to(store.resolve())
    same = link.resolve() == store.resolve()
    expect(same, link, f"a link to {store}", "another store: choose another folder")
    rows = apart(_adopt, FrameStore(link), list(ids))
    most = max(row["frames"] for row in rows)
    expect(most, store, f"frames of {len(rows)} videos, such as {rows[0]['video_id']}", "none")
    unknown = {"fps": 0.0, "duration": 0.0, "bytes": 0}
    return pd.DataFrame(rows).assign(**unknown, file=store.resolve().name, requested=most)


def _adopt(store: FrameStore, ids: Iterable[str]) -> list[dict]:
    rows = []
    for video_id in tqdm(ids, desc="hashing frames", delay=2):
        count, known = store.count(video_id), store.hash(video_id)
        height, width = store.read(video_id, [0]).shape[1:3] if count else (0, 0)
        status, reason = ("ok", "") if count else ("failed", NO_FILE)
        row = {"video_id": video_id, "status": status, "reason": reason, "frames": count}
        rows.append(row | {"width": width, "height": height, "hash": known})
    return rows


def _card(report: SplitReport) -> dict:
    """What the check found; `shared_sources` counts test videos, and is None where the sources are
    not known."""
    repeated, shared = report.table.set_index("split")["repeated_captions"], report.shared_sources
    card = {name: vars(report)[name] for name in ("protocol", "mismatches", "notes")}
    card |= {"partial": bool(report.mismatches), "repeated_captions": repeated.to_dict()}
    return card | {"shared_sources": None if shared is None else len(shared)}


def extract_folder(
    folder: Path,
    out: Path,
    *,
    frames: int | None = None,
    decoder: str | None = None,
    workers: int = 2,
) -> pd.DataFrame:
    """Every file of a tree into `out`/frames.lmdb, and a row for each in `out`/videos.jsonl.

    Returns:
        The rows: file, status "ok" or "failed", reason, frames and what else `extract` tells.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder has no file.
    """
    files = find_videos(folder)
    expect(files, folder, "videos", "no file")
    out.mkdir(parents=True, exist_ok=True)
    settings = frame_settings(frames, decoder)
    rows = extract(files, out / manifest.STORE, settings, workers=workers)
    rows["file"] = [escape(str(file.relative_to(folder))) for file in files.values()]
    write_json_lines(out / manifest.VIDEOS, rows.to_dict("records"))
    return rows
