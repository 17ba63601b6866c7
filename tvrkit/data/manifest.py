"""A prepared data set: a folder with captions.jsonl, videos.jsonl, frames.lmdb and card.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from tvrkit import __version__
from tvrkit.data.extract import NO_FILE
from tvrkit.data.store import FrameStore, check_id
from tvrkit.settings import choose

CAPTION_FIELDS = ["caption_id", "video_id", "caption", "language", "split"]
VIDEO_FIELDS = [
    "video_id",
    "split",
    "file",
    "status",
    "reason",
    "requested",
    "frames",
    "fps",
    "duration",
    "width",
]
VIDEO_FIELDS += ["height", "bytes"]
CAPTIONS, VIDEOS, STORE, CARD = "captions.jsonl", "videos.jsonl", "frames.lmdb", "card.json"


@dataclass(frozen=True)
class Split:
    """The captions and videos of one split and language that have frames.

    Attributes:
        name: of the split.
        captions: DataFrame; the row number is the `caption_index`. It may have `tags`, a second
            text of the video.
        video_ids: the row number is the `video_index`.
        video_of_caption: (N_t,) int64, the video index of each caption.
        missing: ids of the split's videos without frames; where there are any, results are not
            comparable with published ones.
    """

    name: str
    captions: pd.DataFrame
    video_ids: list[str]
    video_of_caption: np.ndarray
    missing: list[str]


class Manifest:
    """A prepared data set that is read. Open it with `Manifest.open`.

    Attributes:
        root: its folder.
        captions: DataFrame, a row per caption.
        videos: DataFrame, a row per video that was asked for.
        card: how it was made.
    """

    def __init__(self, root: Path, captions: pd.DataFrame, videos: pd.DataFrame, card: dict):
        self.root, self.captions, self.videos, self.card = root, captions, videos, card

    @classmethod
    def open(cls, root: Path | str) -> Manifest:
        """Read and check the folder.

        Raises:
            FileNotFoundError: it is not there or half-built; the message has the command that makes
                it.
            ValueError: its parts do not belong together.
        """
        root = Path(root)
        command = f"run `tvrkit data prepare {root.name}`"
        if not root.name.startswith("shapes"):
            command = "see data/README.md for the `tvrkit data prepare` command that makes it"
        if not root.is_dir():
            raise FileNotFoundError(f"no prepared data set at {root}: {command}")
        lost = [name for name in (CAPTIONS, VIDEOS, STORE, CARD) if not (root / name).exists()]
        if lost:
            raise FileNotFoundError(f"{root} is half-built, it has no {', '.join(lost)}: {command}")
        manifest = cls(
            root,
            _read_lines(root / CAPTIONS),
            _read_lines(root / VIDEOS),
            json.loads((root / CARD).read_text(encoding="utf-8")),
        )
        expected = {
            key: manifest.card.get(key)
            for key in ("counts", "split_hash", "captions_hash", "store")
        }
        found = {**_count(manifest.captions, manifest.videos), "store": manifest.frames.settings}
        for key, value in expected.items():
            if found[key] != value:
                raise ValueError(
                    f"{root}: {CARD} says {key} {value}, found {found[key]}: {command}"
                )
        return manifest

    @cached_property
    def frames(self) -> FrameStore:
        """The frame store."""
        return FrameStore(self.root / STORE)

    def split(self, name: str, language: str = "en") -> Split:
        """The captions of one split in one language, and their videos.

        Raises:
            ValueError: no such split or language; the message lists those there are.
        """
        captions = self.captions[
            self.captions["split"] == choose("split", name, set(self.captions["split"]))
        ]
        captions = captions[
            captions["language"] == choose("language", language, set(captions["language"]))
        ]
        captioned = self.videos[self.videos["video_id"].isin(captions["video_id"])]
        good = captioned["status"] == "ok"
        video_ids = captioned["video_id"][good].tolist()
        if not video_ids:
            raise ValueError(
                f"{self.root}: no video of split {name!r} has frames and a caption in {language!r}"
            )
        captions = captions[captions["video_id"].isin(video_ids)].reset_index(drop=True)
        index = {video_id: row for row, video_id in enumerate(video_ids)}
        video_of_caption = captions["video_id"].map(index).to_numpy(np.int64, copy=True)
        return Split(
            name, captions, video_ids, video_of_caption, captioned["video_id"][~good].tolist()
        )


def write(root: Path | str, captions: pd.DataFrame, videos: pd.DataFrame, card: dict) -> Manifest:
    """Write a prepared data set beside its finished `frames.lmdb`. `card.json` comes last: with it
    the set is whole.

    The card gets counts and hashes of ids and captions per split, the store's settings and the
    kit's version.

    Raises:
        ValueError: a column is missing, an id is unusable or not unique, or a caption's video has
            no row.
    """
    root = Path(root)
    for name, table, fields in (
        ("captions", captions, CAPTION_FIELDS),
        ("videos", videos, VIDEO_FIELDS),
    ):
        absent = [field for field in fields if field not in table]
        if absent:
            raise ValueError(
                f"{name} lack {', '.join(absent)}: expected the columns {', '.join(fields)}"
            )
        twice = table[fields[0]][table[fields[0]].duplicated()]
        if len(twice):
            raise ValueError(
                f"{name}: {len(twice)} ids are not unique: {', '.join(map(str, twice[:3]))}"
            )
    for video_id in videos["video_id"]:
        check_id(video_id)
    alone = sorted(set(captions["video_id"]) - set(videos["video_id"]))
    if alone:
        raise ValueError(
            f"captions of {len(alone)} videos that have no row: {', '.join(map(str, alone[:3]))}"
        )
    store = FrameStore(root / STORE).settings
    (root / CARD).unlink(missing_ok=True)
    _write(root / CAPTIONS, _lines(captions))
    _write(root / VIDEOS, _lines(videos))
    card = {**card, **_count(captions, videos), "store": store, "made_by": f"tvrkit {__version__}"}
    _write(root / CARD, [json.dumps(card, ensure_ascii=False, indent=2, sort_keys=True)])
    return Manifest.open(root)


def coverage(videos: pd.DataFrame) -> pd.DataFrame:
    """What is there of each split's videos.

    Args:
        videos: as in videos.jsonl.

    Returns:
        A row per split: videos (wanted), present, and lists of ids: missing (no file), broken (no
        frame could be read), damaged (frames were read, but the file is not whole), too_short
        (fewer frames than asked for).
    """
    rows = []
    for split, group in videos.groupby("split", sort=False):
        good, ids = group["status"] == "ok", group["video_id"]
        absent = group["reason"] == NO_FILE
        short = good & (group["frames"] < group["requested"])
        damaged = good & (group["reason"] != "")
        lists = {
            "missing": absent,
            "broken": ~good & ~absent,
            "damaged": damaged,
            "too_short": short,
        }
        about = {"split": split, "videos": len(group), "present": int(good.sum())}
        rows.append({**about, **{name: ids[mask].tolist() for name, mask in lists.items()}})
    return pd.DataFrame(rows)


def _count(captions: pd.DataFrame, videos: pd.DataFrame) -> dict:
    counts, hashes = {}, {}
    for split, group in videos.groupby("split"):
        ids = sorted(group["video_id"])
        texts = int((captions["split"] == split).sum())
        counts[split] = {
            "videos": len(ids),
            "ok": int((group["status"] == "ok").sum()),
            "captions": texts,
        }
        hashes[split] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    contents = {}
    for (split, language), group in captions.groupby(["split", "language"]):
        columns = [name for name in ("caption_id", "video_id", "caption", "tags") if name in group]
        lines = sorted(group[columns].astype(str).agg("\t".join, axis=1))
        contents.setdefault(split, {})[language] = hashlib.sha256(
            "\n".join(lines).encode()
        ).hexdigest()
    return {"counts": counts, "split_hash": hashes, "captions_hash": contents}


def _lines(table: pd.DataFrame) -> Iterable[str]:
    return (json.dumps(row, ensure_ascii=False) for row in table.to_dict("records"))


def _read_lines(path: Path) -> pd.DataFrame:
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return pd.DataFrame(rows)


def _write(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
