"""Your own videos: a table of captions and files, prepared like every other data set."""

from pathlib import Path, PurePosixPath
from typing import NotRequired

import pandas as pd
from typing_extensions import TypedDict

from tvrkit.data import manifest, records
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import extract
from tvrkit.data.store import make_id
from tvrkit.files import sha256
from tvrkit.settings import choose

SPLITS, LANGUAGES = ("train", "val", "test"), ("en", "zh")
OPTIONAL = ("split", "language", "tags")


class Row(TypedDict):
    caption: str
    file: str
    split: NotRequired[str]
    language: NotRequired[str]
    tags: NotRequired[str]


def read_own(path: Path, language: str = "en") -> pd.DataFrame:
    """A table with a row per caption: CSV with a header, or JSON lines (.jsonl).

    Columns: `caption` and `file` (its path in the folder of videos); where there are any, `split`
    (train, val, test; without it all rows are test), `language` (en, zh) and `tags`, a second text
    of the video. Others are ignored. A video's id is its path with "__" for "/", so files of
    one name in two folders, or with two endings, keep apart.

    Args:
        path: of the table.
        language: of the rows without one.

    Returns:
        DataFrame: caption_id, video_id, file, caption, language, split and, where given, tags.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a column is missing, a value is unknown, a caption is empty, or a video is in
            two splits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table of captions at {path}")
    lines = path.suffix == ".jsonl"
    rows = (
        records.read_json_lines(path, Row) if lines else records.read_csv(path, ["caption", "file"])
    )
    if not rows:
        raise ValueError(f"{path.name}: expected a row per caption, found none")
    table = pd.DataFrame(rows)
    table = table[[name for name in ("caption", "file", *OPTIONAL) if name in table]]
    defaults = {"split": "test", "language": language}
    table = table.assign(**{k: v for k, v in defaults.items() if k not in table})
    table = table.fillna({**defaults, "tags": ""})
    for column, choices in (("split", SPLITS), ("language", LANGUAGES)):
        for value in table[column].unique():
            choose(f"{column} in {path.name}", value, choices)
    empty = table[table["caption"].str.strip() == ""]
    if len(empty):
        raise ValueError(f"{path.name}: row {empty.index[0] + 1}: the caption is empty")
    table["video_id"] = [make_id("__".join(PurePosixPath(file).parts)) for file in table["file"]]
    in_two = table.groupby("video_id")[["split", "file"]].nunique().gt(1).any(axis=1)
    if in_two.any():
        raise ValueError(
            f"{path.name}: {in_two.idxmax()}: expected a video in one split, under one path"
        )
    number = table.groupby(["video_id", "language"]).cumcount().astype(str)
    return table.assign(caption_id=table["video_id"] + "-" + table["language"] + number)


def prepare_own(
    table: Path,
    videos: Path,
    out: Path,
    *,
    language: str = "en",
    settings: FrameSettings,
    workers: int = 2,
) -> manifest.Manifest:
    """Read the table, extract its videos, write the folder that recipes name.

    Args:
        table: see `read_own`.
        videos: the folder that the table's files are in.
        out: folder of the prepared data set.
        language: of the rows without one.
        settings: what is kept of each video.
        workers: processes that decode.

    Raises:
        FileNotFoundError: no table, or none of its files is in the folder.
        ValueError: what `read_own` and `extract` refuse.
    """
    captions = read_own(table, language)
    files = {row.video_id: videos / row.file for row in captions.itertuples()}
    if not any(file.is_file() for file in files.values()):
        first = captions["file"][0]
        raise FileNotFoundError(
            f"none of the {len(files)} files of {table} is in {videos}, such as {first}"
        )
    rows = extract(files, out / manifest.STORE, settings, workers=workers)
    split_of = captions.drop_duplicates("video_id").set_index("video_id")["split"]
    rows = rows.assign(split=rows["video_id"].map(split_of))
    card = {"protocol": "own", "table_sha256": sha256(table)}
    return manifest.write(out, captions.drop(columns="file"), rows, card)
