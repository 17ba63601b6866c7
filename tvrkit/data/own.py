"""Your own videos: a table of captions and files, prepared like every other data set."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NotRequired

import pandas as pd
from pydantic import StringConstraints
from typing_extensions import TypedDict

from tvrkit.data import manifest, records
from tvrkit.data.decoders import FrameSettings
from tvrkit.data.extract import extract
from tvrkit.data.store import make_id
from tvrkit.files import expect, sha256


class Row(TypedDict):
    caption: Annotated[str, StringConstraints(pattern=r"\S")]
    file: str
    split: NotRequired[Literal["train", "val", "test"]]
    language: NotRequired[Literal["en", "zh"]]
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
        ValueError: a column is missing, a value is unknown, a caption is empty, a file is outside
            of the folder, or a video is in two splits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table of captions at {path}")
    if path.suffix == ".jsonl":
        read = records.read_json_lines(path, dict)
    else:
        read = records.read_csv(path, ["caption", "file"])
    expect(read, path.name, "a row per caption", "none")
    rows = [{"split": "test", "language": language} | row for row in read]
    rows = records.checked(rows, list[Row], path.name)
    table = pd.DataFrame(rows).fillna("")  # tags some rows have not
    paths = [*map(PurePosixPath, table["file"])]
    if outside := [str(each) for each in paths if each.is_absolute() or ".." in each.parts]:
        raise ValueError(f"{path.name}: expected relative paths without '..', got {outside[0]!r}")
    table["video_id"] = [make_id("__".join(each.parts)) for each in paths]
    in_two = table.groupby("video_id")[["split", "file"]].nunique().gt(1).any(axis=1)
    where = f"{path.name}: {in_two.idxmax()}"
    expect(not in_two.any(), where, "a video in one split, under one path", "several")
    number = table.groupby(["video_id", "language"]).cumcount().astype(str)
    return table.assign(caption_id=table["video_id"] + "-" + table["language"] + number)


def prepare_own(
    table: Path,
    videos: Path,
    out: Path,
    language: str = "en",
    *,
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
        none = f"none of the {len(files)} files of {table} is in {videos}"
        raise FileNotFoundError(f"{none}, such as {captions['file'][0]}")
    rows = extract(files, out / manifest.STORE, settings, workers=workers)
    card = {"protocol": "own", "table_sha256": sha256(table)}
    return manifest.write(out, captions.drop(columns="file"), rows, card)
