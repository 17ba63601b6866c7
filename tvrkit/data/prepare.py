"""From annotation files and a folder of videos to a prepared data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tvrkit.data import manifest, shapes
from tvrkit.data.adapters import load_annotations, resolve
from tvrkit.data.frames import extract, find_videos
from tvrkit.data.splits import SplitReport, check_splits
from tvrkit.reproducibility import write_text

FRAMES = {"msrvtt": 30, "vatex": 30, "chvtt": 48, "didemo": 64, "activitynet": 64}  # HMMC's stores; 64 for paragraphs
FRAMES_ELSEWHERE = 12
SHORT_SIDE = 256  # pixels: enough for a random crop to any 224-pixel backbone


def prepare(
    name: str,
    root: Path,
    videos: Path,
    out: Path,
    *,
    language: str | None = None,
    splits: Sequence[str] | None = None,
    frames: int | None = None,
    short_side: int | None = SHORT_SIDE,
    allow_partial: bool = False,
    workers: int = 2,
) -> tuple[manifest.Manifest, SplitReport]:
    """Read and check the annotations, find and extract the videos, write the folder that recipes name.

    Args:
        name: data set ("msrvtt", its default protocol) or protocol ("msrvtt/full").
        root: folder of the annotation files.
        videos: any tree of video files.
        out: folder of the prepared data set.
        language: of the captions; the protocol's first where None.
        splits: only their files are read and checked; all of the protocol's where None.
        frames: kept per video; `FRAMES` of the data set where None.
        short_side: see `extract`.
        allow_partial: go on when counts or ids are not the protocol's; the card says so.
        workers: processes that decode.

    Raises:
        ValueError: what `load_annotations`, `check_splits` and `extract` refuse.
    """
    dataset, protocol = resolve(name)
    captions = load_annotations(dataset, root, protocol, language, splits)
    report = check_splits(captions, protocol, allow_partial)
    split_of = captions.drop_duplicates("video_id").set_index("video_id")["split"]
    found = find_videos(videos, split_of.index)
    count = frames or FRAMES.get(dataset, FRAMES_ELSEWHERE)
    files = {video_id: found.get(video_id) for video_id in split_of.index}
    rows = extract(files, out / manifest.STORE, frames=count, short_side=short_side, workers=workers)
    rows = rows.assign(split=rows["video_id"].map(split_of))
    return manifest.write(out, captions, rows, _card(report)), report


def _card(report: SplitReport) -> dict:
    """What the check found; `shared_sources` counts test videos, and is None where the sources are not known."""
    repeated = report.table.set_index("split")["repeated_captions"]
    return {
        "protocol": report.protocol,
        "partial": report.partial,
        "mismatches": report.mismatches,
        "notes": report.notes,
        "repeated_captions": {split: int(count) for split, count in repeated.items()},
        "shared_sources": None if report.shared_sources is None else len(report.shared_sources),
    }


def prepare_shapes(out: Path, seed: int = 0, workers: int = 2) -> manifest.Manifest:
    """The embedded data set; the folder's name ends in its preset ("shapes-quick")."""
    shapes.prepare(out, out.name.removeprefix("shapes-"), seed, workers)
    return manifest.Manifest.open(out)


def extract_folder(
    folder: Path, out: Path, *, frames: int = FRAMES_ELSEWHERE, short_side: int | None = SHORT_SIDE, workers: int = 2
) -> pd.DataFrame:
    """Every file of a tree into `out`/frames.lmdb, and a row for each in `out`/videos.jsonl.

    Returns:
        The rows: file, status "ok" or "failed", reason, frames and what else `extract` tells.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder has no file.
    """
    files = find_videos(folder)
    if not files:
        raise ValueError(f"{folder}: expected videos, found no file")
    out.mkdir(parents=True, exist_ok=True)
    rows = extract(files, out / manifest.STORE, frames=frames, short_side=short_side, workers=workers)
    rows["file"] = [str(file.relative_to(folder)) for file in files.values()]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_dict("records"))
    write_text(out / manifest.VIDEOS, "".join(lines))
    return rows
