"""Community annotation layouts to one captions table.

One small function per data set: files in, (split, video, caption) rows out. Which captions are
queries of a video is data, the `video_id` column. Whatever a reader leaves out or mends is a line
in `attrs["notes"]`. Which protocols, languages and splits there are, `assets/protocols.csv` says.
"""
# ruff: noqa: UP013  the records of the files are a table, a line each

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NotRequired

import pandas as pd
from annotated_types import Len
from typing_extensions import TypedDict

from tvrkit.data import records
from tvrkit.data.splits import expected_counts, protocols
from tvrkit.data.store import check_id
from tvrkit.files import expect, shown
from tvrkit.settings import choose

COLUMNS = ["video_id", "caption_id", "caption", "language", "split"]
MAX_LISTED = 20  # ids named in one note

Texts = dict[str, list[str]]  # the captions of each video
Row = tuple[str, ...]  # split, video id, caption and, where a data set has them, the video's tags

# What is read of each record; other fields are ignored.
Times = list[Annotated[list[float], Len(2, 2)]]
Clip = TypedDict("Clip", {"video_id": str, "split": str, "url": NotRequired[str]})
Sentence = TypedDict("Sentence", {"video_id": str, "caption": str})
MSRVTT = TypedDict("MSRVTT", {"videos": list[Clip], "sentences": list[Sentence]})
ClipCaption = TypedDict("ClipCaption", {"clip_name": str, "caption": str})
Moment = TypedDict("Moment", {"video": str, "description": str, "times": NotRequired[Times]})
Events = TypedDict("Events", {"duration": float, "timestamps": Times, "sentences": list[str]})
Vatex = TypedDict("Vatex", {"enCap": NotRequired[list[str]], "chCap": NotRequired[list[str]]})
Title = TypedDict("Title", {"docid": str, "title": str, "title_eng": str})
Titles = Annotated[list[Title], Len(1)]
Query = TypedDict("Query", {"query": str, "query_eng": str, "videolist": Titles})
Caption = TypedDict("Caption", {"video_id": str, "caption": str, "language": str, "split": str})


class VatexVideo(Vatex):
    videoID: str


class TaggedTitle(Title):
    tag: str
    tag_eng: str


@dataclass(frozen=True)
class Request:
    """What a reader is asked for, `splits` with the names of their lists; it appends to `notes`
    whatever it leaves out or mends, and to `sources` what each video was cut from, where a file
    tells."""

    root: Path
    protocol: str
    language: str
    splits: dict[str, str]
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.root / name).is_file()

    def path(self, *names: str) -> Path:
        """The first of `names` that is there."""
        for name in names:
            if self.has(name):
                return self.root / name
        choices = " or ".join(names)
        raise FileNotFoundError(f"{self.protocol}: expected {choices} in {self.root}, found none")

    def json(self, name: str, kind: Any) -> Any:
        """`records.read_json` of a file of the folder."""
        return records.read_json(self.path(name), kind)

    def ids(self, name: str) -> list[str]:
        """`records.read_ids` of a file of the folder."""
        return records.read_ids(self.path(name))

    def note(self, what: str, ids: Sequence[str]) -> None:
        """Note the `ids`, if there are any."""
        if ids:
            more = f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else ""
            self.notes.append(f"{len(ids)} {what}: {', '.join(ids[:MAX_LISTED])}{more}")

    def by_list(self, split: str, ids: Sequence[str], captions: Texts) -> Iterator[Row]:
        """The captions of the listed videos, in the list's order."""
        absent = [video for video in ids if video not in captions]
        self.note(f"listed {split} ids without captions, left out", absent)
        return ((split, video, caption) for video in ids for caption in captions.get(video, ()))

    def by_lists(self, captions: Texts) -> Iterator[Row]:
        """`by_list` of each split's own list."""
        for split, name in self.splits.items():
            yield from self.by_list(split, self.ids(name), captions)


def _grouped(pairs: Iterable[tuple[str, str]]) -> Texts:
    groups: Texts = {}
    for video, caption in pairs:
        groups.setdefault(video, []).append(caption)
    return groups


def _msrvtt(request: Request) -> Iterator[Row]:
    """Ids from csv lists, captions from MSRVTT_data.json or {split}.jsonl; the 1k-A test csv holds
    both."""
    read = cache(request.json)  # one file for all splits
    for split, name in request.splits.items():
        if name == "MSRVTT_JSFUSION_test.csv" and request.has(name):
            for row in records.read_csv(request.path(name), ["video_id", "sentence"]):
                yield split, row["video_id"], row["sentence"]
            continue
        if request.has("MSRVTT_data.json"):
            whole = read("MSRVTT_data.json", MSRVTT)
            captions = _grouped((row["video_id"], row["caption"]) for row in whole["sentences"])
            words = (split, "validate") if split == "val" else (split,)  # some copies say 'val'
            own = [row["video_id"] for row in whole["videos"] if row["split"] in words]
            ids = own if request.protocol == "msrvtt/full" else []
            urls = {row["video_id"]: row["url"] for row in whole["videos"] if "url" in row}
            request.sources.update({video: url.rpartition("v=")[2] for video, url in urls.items()})
        else:
            path = request.path(f"{split}.jsonl", "MSRVTT_data.json")
            clips = records.read_json_lines(path, ClipCaption)
            captions = _grouped((row["clip_name"], row["caption"]) for row in clips)
            ids = list(captions)
        listed = request.ids(name) if request.has(name) or not ids else ids
        yield from request.by_list(split, listed, captions)


def _msvd(request: Request) -> Iterator[Row]:
    """{split}_list.txt; captions_msvd.json, or raw-captions.pkl with token lists; Chinese:
    MSVD-CN.csv."""
    if request.language == "zh":
        return request.by_lists(_msvd_chinese(request))
    if request.has("captions_msvd.json"):
        return request.by_lists(request.json("captions_msvd.json", Texts))
    path = request.path("raw-captions.pkl", "captions_msvd.json")
    tokens = records.read_pickle(path, dict[str, list[list[str]]])
    return request.by_lists({video: [*map(" ".join, lists)] for video, lists in tokens.items()})


def _msvd_chinese(request: Request) -> Texts:
    lines = records.read_lines(request.path("youtube_mapping.txt"))
    rows = [line.split() for line in lines if line.strip()]
    for row in rows:
        expect(len(row) == 2, "youtube_mapping.txt", "'<id> vidN' on each line", shown(row))
    names = {name: video for video, name in rows}
    sentences = records.read_csv(request.path("MSVD-CN.csv"), ["video_id", "sentence"])
    pairs = [(row["video_id"].removesuffix(".mp4"), row["sentence"]) for row in sentences]
    absent = [name for name in dict(pairs) if name not in names]
    request.note("names of MSVD-CN.csv not in youtube_mapping.txt, left out", absent)
    return _grouped((names[name], sentence) for name, sentence in pairs if name in names)


def _paragraphs(
    request: Request,
    split: str,
    ids: Mapping[str, str],
    parts: Sequence[tuple[str, Sequence[str], Times]],
) -> Iterator[Row]:
    """A row per listed video: all its sentences, in the file's order, as one text.

    Args:
        ids: of the listed videos, by the names they have in the file.
        parts: name of the video, sentences, and their times. No row depends on these: a paragraph
            belongs to the whole video.
    """
    turned = [name for name, _, times in parts for start, end in times if start > end]
    reason = f"{split} segments that end before they start, taken from end to start, of"
    request.note(reason, turned)
    absent = dict.fromkeys(name for name, *_ in parts if name not in ids)
    request.note(f"{split} names that are not listed, left out", list(absent))
    known = [(ids[name], " ".join(sentences)) for name, sentences, _ in parts if name in ids]
    texts = _grouped(known)
    paragraphs = {video: [" ".join(sentences)] for video, sentences in texts.items()}
    return request.by_list(split, list(dict.fromkeys(ids.values())), paragraphs)


def _didemo(request: Request) -> Iterator[Row]:
    """{split}_data.json in file order, {split}_list.txt of file names, with endings or without.

    A few videos stand in the JSON under two endings. As in CLIP4Clip's loader only what is filed
    under the listed one counts, so that paragraphs are its; a video is called by its stem, as
    containers change.
    """
    for split, list_name in request.splits.items():
        moments = request.json(f"{split}_data.json", list[Moment])
        ids = {name: _stem(name) for name in request.ids(list_name)}
        records.check_unique(list_name, "name without its ending", list(ids.values()))
        without = {row["video"]: _stem(row["video"]) for row in moments}  # a list without endings
        ids |= {name: stem for name, stem in without.items() if stem in ids}
        parts = [(row["video"], [row["description"]], row.get("times", [])) for row in moments]
        yield from _paragraphs(request, split, ids, parts)


def _stem(name: str) -> str:
    return name.rstrip(".") if name.endswith(".") else name.removesuffix(PurePosixPath(name).suffix)


def _activitynet(request: Request) -> Iterator[Row]:
    """train.json and, as test, val_1.json; order and choice by train_ids.json and val_ids.json."""
    for split, list_name in request.splits.items():
        name = {"train": "train.json", "test": "val_1.json"}[split]
        events = request.json(name, dict[str, Events])
        ids = {video: video for video in request.ids(list_name)}
        parts = [(video, row["sentences"], row["timestamps"]) for video, row in events.items()]
        for video, sentences, times in parts:
            at, got = f"{name}: at {video}", f"{len(times)} and {len(sentences)}"
            expect(len(times) == len(sentences), at, "as many timestamps as sentences", got)
        yield from _paragraphs(request, split, ids, parts)


def _lsmdc(request: Request) -> Iterator[Row]:
    """Tab-separated. `lsmdc` keeps every sentence of a repeated clip, `lsmdc/last-sentence` its
    last."""
    for split, name in request.splits.items():
        rows = [(row[0], row[5]) for row in records.read_table(request.path(name), columns=6)]
        kept = list(dict(rows).items()) if request.protocol == "lsmdc/last-sentence" else rows
        if left_out := len(rows) - len(kept):
            request.notes.append(f"{left_out} {split} sentences of repeated clips left out")
        yield from ((split, *row) for row in kept)


def _vatex(request: Request) -> Iterator[Row]:
    """HGR's {split}_list.txt; vatex_data.json, or the official files, whichever are there."""
    official = ("vatex_training_v1.0.json", "vatex_validation_v1.0.json")
    if request.has("vatex_data.json"):
        videos = request.json("vatex_data.json", dict[str, Vatex])
    else:
        request.path("vatex_data.json", *official)
        there = filter(request.has, official)
        rows = [row for name in there for row in request.json(name, list[VatexVideo])]
        records.check_unique(" and ".join(official), "videoID", [row["videoID"] for row in rows])
        videos = {row["videoID"]: row for row in rows}
    key = {"en": "enCap", "zh": "chCap"}[request.language]
    return request.by_lists({video: row[key] for video, row in videos.items() if key in row})


def _chvtt(request: Request) -> Iterator[Row]:
    """`chvtt` trains on titles with tags, `chvtt/query` on queries; both are tested on the
    validation queries.

    A video is called "Video" + docid, as in HMMC's frame store. A test query has its list's first
    video only.
    """
    ending = {"zh": "", "en": "_eng"}[request.language]
    for split, name in request.splits.items():
        if name == "videoinfo_bilingual.json":
            videos = records.read_json_lines(request.path(name), TaggedTitle)
            records.check_unique(name, "docid", [video["docid"] for video in videos])
            for video in videos:
                texts = video["title" + ending], video["tag" + ending]
                yield split, f"Video{video['docid']}", *texts
            continue
        for row in records.read_json_lines(request.path(name), Query):
            for video in row["videolist"] if split == "train" else row["videolist"][:1]:
                yield split, f"Video{video['docid']}", row["query" + ending]


def _shapes(request: Request) -> Iterator[Row]:
    """captions.jsonl of the prepared folder, as the kit writes it."""
    for row in records.read_json_lines(request.path("captions.jsonl"), Caption):
        if row["split"] in request.splits and row["language"] == request.language:
            yield row["split"], row["video_id"], row["caption"]


def _youtube(video: str) -> str:
    return video.rsplit("_", 2)[0]  # <id>_<start>_<end>; an id may hold _


@dataclass(frozen=True)
class Dataset:
    """A data set the kit can read.

    Attributes:
        read: its reader.
        source: video id -> what the clip was cut from; None where only a file tells.
    """

    read: Callable[[Request], Iterable[Row]]
    source: Callable[[str], str] | None = str


DATASETS: dict[str, Dataset] = {
    "msrvtt": Dataset(_msrvtt, None),
    "msvd": Dataset(_msvd, _youtube),
    "didemo": Dataset(_didemo),
    "activitynet": Dataset(_activitynet),
    "lsmdc": Dataset(_lsmdc, lambda clip: clip.split(".")[0][:-3]),
    "vatex": Dataset(_vatex, _youtube),
    "chvtt": Dataset(_chvtt),
    "shapes": Dataset(_shapes),
}


def resolve(dataset: str, protocol: str | None = None) -> tuple[str, str]:
    """Name and full protocol of ("msrvtt", "1k-A"), ("msrvtt", "msrvtt/1k-A") or ("msrvtt/1k-A",
    None).

    Raises:
        ValueError: unknown data set or protocol; the choices are listed.
    """
    name, slash, _ = dataset.partition("/")
    known = protocols(choose("data set", name, DATASETS))
    if protocol is None:
        protocol = dataset if slash else known[0]
    elif protocol not in known:
        protocol = f"{name}/{protocol}"
    return name, choose("protocol", protocol, known)


def load_annotations(
    dataset: str,
    root: Path | str,
    protocol: str | None = None,
    language: str | None = None,
    splits: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The captions of a data set.

    Args:
        dataset: a key of `DATASETS`.
        root: folder of its annotation files.
        protocol: "1k-A" or "msrvtt/1k-A"; the data set's first where None.
        language: of the captions; the protocol's first where None.
        splits: only their files are read; all of the protocol's where None.

    Returns:
        Rows [video_id, caption_id, caption, language, split] in the files' order, captions with
        single blanks; also `tags`, a second text of the video, where the data set has them (CHVTT).
        `attrs`: "protocol"; "notes", lines that say what was left out or mended; "sources", what
        each video was cut from, or None.

    Raises:
        ValueError: unknown name, split or language; a malformed file; an id that could leave its
            folder.
        FileNotFoundError: names the missing file.
    """
    name, protocol = resolve(dataset, protocol)
    known = expected_counts().query("protocol == @protocol")
    language = choose("language", language or known["language"].iloc[0], set(known["language"]))
    lists = dict(zip(known["split"], known["list"], strict=True))
    wanted = {choose("split", split, lists): lists[split] for split in splits or lists}
    if not Path(root).is_dir():
        raise FileNotFoundError(f"annotations of {name}: expected a folder at {root}, found none")
    request, layout = Request(Path(root), protocol, language, wanted), DATASETS[name]
    table = _table(layout.read(request), request)
    sources = request.sources or None
    if layout.source:
        sources = {video: layout.source(video) for video in table["video_id"].unique()}
    table.attrs = {"protocol": protocol, "notes": request.notes, "sources": sources}
    return table


def _table(rows: Iterable[Row], request: Request) -> pd.DataFrame:
    padded = [(*row, "")[:4] for row in rows]
    names = ["split", "video_id", "caption", "tags"]
    table = pd.DataFrame(padded, columns=names, dtype=object)
    for video in table["video_id"].unique():
        check_id(video)
    empty = [split for split in request.splits if split not in set(table["split"])]
    wanted = f"{request.language} captions in {', '.join(empty)}"
    expect(not empty, request.protocol, wanted, "none")
    table[["caption", "tags"]] = table[["caption", "tags"]].map(_clean)
    blank = table.loc[table["caption"] == "", "video_id"]
    request.note("empty captions kept, of", list(blank))
    number = table.groupby("video_id").cumcount().astype(str)
    ids = table["video_id"] + "-" + request.language + number
    table = table.assign(language=request.language, caption_id=ids)
    return table[COLUMNS + ["tags"] * any(table["tags"])]


def _clean(caption: str) -> str:
    """Single blanks, and no lone surrogates: JSON allows them, UTF-8 files do not."""
    return " ".join(caption.encode("utf-8", "replace").decode("utf-8").split())
