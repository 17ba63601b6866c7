"""A prepared data set: a folder with captions.jsonl, videos.jsonl, frames.lmdb and card.json."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NotRequired, Self

import numpy as np
import pandas as pd
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from tvrkit import __version__, files
from tvrkit.data.extract import NO_FILE, who_read
from tvrkit.data.records import check_unique, checked, read_json_lines
from tvrkit.data.splits import set_hash
from tvrkit.data.store import FrameStore, check_id
from tvrkit.files import expect, shown
from tvrkit.settings import choose


class CaptionRow(TypedDict):
    """A line of captions.jsonl. `tags` is a second text of the video; there may be more."""

    caption_id: str
    video_id: str
    caption: str
    language: str
    split: str
    tags: NotRequired[str]


class VideoRow(TypedDict):
    """A line of videos.jsonl, see `tvrkit.data.extract.extract`; there may be more in it."""

    video_id: str
    split: str
    file: str
    status: Literal["ok", "failed"]
    reason: str
    requested: NonNegativeInt
    frames: NonNegativeInt
    fps: float
    duration: float
    width: NonNegativeInt
    height: NonNegativeInt
    bytes: NonNegativeInt
    hash: NotRequired[str]


CAPTION_FIELDS = ["caption_id", "video_id", "caption", "language", "split"]
Table = Literal["captions.jsonl", "videos.jsonl"]
CAPTIONS, VIDEOS, STORE, CARD = "captions.jsonl", "videos.jsonl", "frames.lmdb", "card.json"


@dataclass(frozen=True)
class Split:
    """The captions and videos of one split and language that have frames.

    Attributes:
        name: of the split.
        language: of the captions.
        captions: DataFrame; the row number is the `caption_index`. It may have `tags`, a second
            text of the video.
        video_ids: the row number is the `video_index`.
        video_of_caption: (N_t,) int64, the video index of each caption.
        missing: ids of the split's videos without frames.
        complete: nothing is missing, and the data set is what its protocol says; else results are
            not comparable with published ones.
        frame_counts: stored frames of each video.
        frames: the store they are read from.
        root: folder of the data set.
    """

    name: str
    language: str
    captions: pd.DataFrame
    video_ids: list[str]
    video_of_caption: np.ndarray
    missing: list[str]
    complete: bool
    frame_counts: list[int]
    frames: FrameStore
    root: Path


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
    def open(cls, root: Path | str) -> Self:
        """Read and check the folder.

        Raises:
            FileNotFoundError: it is not there or half-built; the message has the command that makes
                it.
            ValueError: its parts do not belong together.
        """
        root = Path(root)
        command = "see data/README.md for the `tvrkit data prepare` command that makes it"
        if root.name.startswith("shapes"):
            command = f"run `tvrkit data prepare {root.name}`"
        if not root.is_dir():
            raise FileNotFoundError(f"no prepared data set at {root}: {command}")
        lost = [name for name in (CAPTIONS, VIDEOS, CARD) if not (root / name).is_file()]
        lost += [] if (root / STORE).exists() else [STORE]
        if lost:
            raise FileNotFoundError(f"{root} is half-built, it has no {', '.join(lost)}: {command}")
        rows = [read_json_lines(root / name, dict) for name in (CAPTIONS, VIDEOS)]
        captions, videos = _checked(*rows)
        manifest = cls(root, captions, videos, files.read_json(root / CARD))
        for key, value in (_count(captions, videos) | {"store": manifest.frames.settings}).items():
            said, got = manifest.card.get(key), f"{shown(value)}: {command}"
            expect(said == value, root, f"{key} {shown(said)}, as {CARD} says", got)
        hashes = checked(manifest.card.get("files", {}), dict[Table, str], CARD)
        changed = [name for name in hashes if files.sha256(root / name) != hashes[name]]
        # sets of earlier versions have neither; a damaged name of one leaves the other
        if {"files", "sha256"} & {*manifest.card} and manifest.card != files.sealed(manifest.card):
            changed.append(CARD)
        named = f"another {', '.join(changed)}: {command}"
        expect(not changed, root, "files as they were written", named)
        return manifest

    @cached_property
    def frames(self) -> FrameStore:
        """The frame store; what is read of it is compared with the hashes of videos.jsonl."""
        known = self.videos.set_index("video_id").get("hash")  # None of an earlier version's set
        return FrameStore(self.root / STORE, None if known is None else known.to_dict())

    def split(self, name: str, language: str = "en") -> Split:
        """The captions of one split in one language, and their videos.

        Raises:
            ValueError: no such split or language; the message lists those there are.
        """
        captions = self.captions
        for column, value in (("split", name), ("language", language)):
            captions = captions[captions[column] == choose(column, value, set(captions[column]))]
        captioned = self.videos[self.videos["video_id"].isin(captions["video_id"])]
        good = captioned[captioned["status"] == "ok"]
        wanted = f"videos of split {name!r} with frames and a caption in {language!r}"
        expect(not good.empty, self.root, wanted, "none")
        captions = captions[captions["video_id"].isin(good["video_id"])].reset_index(drop=True)
        owner = pd.Index(good["video_id"]).get_indexer(captions["video_id"]).astype(np.int64)
        missing = captioned.loc[captioned["status"] != "ok", "video_id"].tolist()
        whole = not (missing or self.card.get("partial", False))
        stored = good["frames"].tolist(), self.frames, self.root
        ids = good["video_id"].tolist()
        return Split(name, language, captions, ids, owner, missing, whole, *stored)


def write(root: Path | str, captions: pd.DataFrame, videos: pd.DataFrame, card: dict) -> Manifest:
    """Write a prepared data set beside its finished `frames.lmdb`. `card.json` comes last: with it
    the set is whole. A video is in its captions' split, unless `videos` says in which.

    The card gets counts and hashes of ids and captions per split, the store's settings, which
    decoder read how many of the videos and why, the kit's version, and the hashes of both tables
    and of itself.

    Raises:
        ValueError: a column is missing or of another type, an id is unusable or not unique, or a
            caption's video has no row.
    """
    root = Path(root)
    if "split" not in videos:
        split_of = captions.drop_duplicates("video_id").set_index("video_id")["split"]
        videos = videos.assign(split=videos["video_id"].map(split_of))
    captions, videos = _checked(captions.to_dict("records"), videos.to_dict("records"))
    store = FrameStore(root / STORE).settings
    (root / CARD).unlink(missing_ok=True)
    files.write_json_lines(root / CAPTIONS, captions.to_dict("records"))
    files.write_json_lines(root / VIDEOS, videos.to_dict("records"))
    card = {**card, **_count(captions, videos), "store": store, "made_by": f"tvrkit {__version__}"}
    card["decoders"] = who_read(videos)
    card["files"] = {name: files.sha256(root / name) for name in (CAPTIONS, VIDEOS)}
    files.write_json(root / CARD, files.sealed(card))
    return Manifest.open(root)


def _checked(captions: list[dict], videos: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of these rows, if they are of their types, each id is there once, a video's is fit
    for file names, and every caption's video has a row."""
    checked(captions, list[CaptionRow], CAPTIONS)
    checked(videos, list[VideoRow], VIDEOS)
    check_unique("captions", "id", [row["caption_id"] for row in captions])
    ids = [row["video_id"] for row in videos]
    check_unique("videos", "id", ids)
    for video_id in ids:
        check_id(video_id)
    alone = sorted({row["video_id"] for row in captions} - set(ids))
    expect(not alone, CAPTIONS, "videos that have a row", f"{len(alone)} without: {shown(alone)}")
    return (
        pd.DataFrame(captions, columns=None if captions else CAPTION_FIELDS),
        pd.DataFrame(videos, columns=None if videos else [*VideoRow.__annotations__]),
    )


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
        good, absent = group["status"] == "ok", group["reason"] == NO_FILE
        lists = {
            "missing": absent,
            "broken": ~good & ~absent,
            "damaged": good & (group["reason"] != ""),
            "too_short": good & (group["frames"] < group["requested"]),
        }
        ids = {name: group.loc[mask, "video_id"].tolist() for name, mask in lists.items()}
        rows.append({"split": split, "videos": len(group), "present": int(good.sum()), **ids})
    return pd.DataFrame(rows)


def _count(captions: pd.DataFrame, videos: pd.DataFrame) -> dict:
    """What the card says of the two tables: numbers, and hashes of ids, captions and tags."""
    card: dict = {"counts": {}, "split_hash": {}, "captions_hash": {}}
    for split, group in videos.groupby("split"):
        good, texts = int((group["status"] == "ok").sum()), int((captions["split"] == split).sum())
        card["counts"][split] = {"videos": len(group), "ok": good, "captions": texts}
        card["split_hash"][split] = set_hash(group["video_id"])
    for (split, language), group in captions.groupby(["split", "language"]):
        lines = group[["caption_id", "video_id", "caption"]].astype(str).agg("\t".join, axis=1)
        card["captions_hash"].setdefault(split, {})[language] = set_hash(lines)
    if "tags" in captions:
        card["tags_hash"] = set_hash(captions["caption_id"] + "\t" + captions["tags"])
    return card
