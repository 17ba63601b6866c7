"""The index of a folder of videos: built, kept current and searched.

All there is lies in a LanceDB database: the table `segments`, and the table `card` of one row that
says what it was made with. Its place is a folder, or the address of an object store.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import lancedb
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm import tqdm

from tvrkit.search import query as queries
from tvrkit.search import rows
from tvrkit.search.clips import SECONDS, File, find
from tvrkit.search.encoder import Encoder, Model, Query
from tvrkit.search.engines import ENGINES
from tvrkit.settings import choose

FORMAT = 1
SEGMENTS, CARD = "segments", "card"
KEPT = timedelta(minutes=10)  # a search under way may go on reading an old version so long
FACTS = ["file", "path", "name", "size", "modified", "sha256", "status", "reason"]
CHUNK = 500  # files named in one statement
APPROXIMATE = 50_000  # rows from which on an approximate index pays; below, every vector is read
GROWTH = 4  # it is made anew when there are so many times the rows it was made of
FULL = "What was finished is kept: make room and run the same command again"


class Index:
    """An index that is open. Use `Index.open` or `Index.build`.

    Attributes:
        place: folder or address.
        card: what it was made with.
        table: LanceDB's table of segments.
    """

    def __init__(self, place: str):
        self.place = place
        if not exists(place):
            raise FileNotFoundError(
                f"no index at {place}: `tvrkit index DIR --out {place}` makes it"
            )
        self._database = lancedb.connect(place)
        self.card = json.loads(self._database.open_table(CARD).to_arrow()["card"][0].as_py())
        if self.card["format"] != FORMAT:
            expected = f"expected an index of format {FORMAT}, got {self.card['format']}"
            raise ValueError(f"{place}: {expected}: make it anew")
        self.table = self._database.open_table(SEGMENTS)

    @classmethod
    def open(cls, place: Path | str, encoder: Encoder | None = None) -> Index:
        """An index that is there.

        Args:
            place: folder or address.
            encoder: the model it was made with, where it is loaded already; else it is loaded when
                a search needs it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was made by another version of the kit, or with another model.
        """
        index = cls(str(place))
        if encoder is not None:
            index.check(encoder)
            index.encoder = encoder
        return index

    @classmethod
    def build(
        cls,
        folder: Path | str,
        place: Path | str,
        encoder: Encoder,
        *,
        seconds: float = SECONDS,
        engine: str = "local",
        workers: int = 2,
        retry: bool = True,
    ) -> Index:
        """Make the index of a folder, or bring it up to date; stopped at any moment, the next call
        goes on.

        Only what is new or has changed is read: by size and time, then by hash. A file that was
        moved, or only touched, keeps its rows. Rows of files that are gone from `folder` are
        removed; other folders may share the index.

        Args:
            folder: any tree of video files.
            place: folder of the index, or the address of an object store.
            encoder: the model that describes the videos.
            seconds: of a segment.
            engine: a key of `ENGINES`.
            workers: that decode.
            retry: read again what had failed.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no video in it, or the index is of another model.
            OSError: another process builds this index, or the disk is full.
        """
        place, folder = str(place), Path(folder)
        run = ENGINES[choose("engine", engine, ENGINES)]
        found, others = find(folder)
        if not found and not exists(place):
            raise ValueError(f"{folder}: expected videos, found none among {others:,} files")
        with _only_builder(place), _room(place):
            if not exists(place):
                _create(place, encoder)
            index = cls.open(place, encoder)
            before = index.table.version
            unread = index._rename_known(found, retry)
            tables = run(unread, encoder, index.table.schema, seconds, workers)
            index._write(tables, len(unread), f"indexing {folder}")
            index._remove_gone(folder, found)
            if index.table.version != before or "unrelated" not in index.card:
                index._settle()
        return index

    @cached_property
    def encoder(self) -> Encoder:
        """The model it was made with.

        Raises:
            FileNotFoundError: it is no longer there.
            ValueError: it is another one by now.
        """
        encoder = Encoder(Model(**self.card["model"]))
        self.check(encoder)
        return encoder

    def check(self, encoder: Encoder) -> None:
        """ValueError where the index was made with another model."""
        made = {key: value for key, value in encoder.card.items() if key != "model"}
        other = [key for key in made if self.card[key] != made[key]]
        if other:
            says = ", ".join(f"{key} {self.card[key]!r}, got {made[key]!r}" for key in other)
            raise ValueError(f"{self.place} is an index of another model: expected {says}")

    def files(self) -> pd.DataFrame:
        """A row per file: path, status "ok" or "failed", reason, and what else is known of it."""
        return self.table.search().where("segment = 0").select(FACTS).to_arrow().to_pandas()

    def failures(self) -> pd.DataFrame:
        """Path, status and reason of each file that gave no frames, or is damaged."""
        files = self.files()
        return files.loc[files["reason"] != "", ["path", "status", "reason"]]

    def media(self, found: pd.DataFrame) -> list[dict]:
        """Of each hit its file's `name` (bytes), and the film `strip` of its segment, a JPEG
        file."""
        wanted = self.table.search().where(_named({"", *found["file"]}))
        table = wanted.select(["file", "segment", "name", "strip"]).to_arrow().to_pylist()
        known = {(row["file"], row["segment"]): row for row in table}
        return [known[key] for key in zip(found["file"], found["segment"], strict=True)]

    def _rename_known(self, found: Sequence[File], retry: bool) -> list[File]:
        """Files that must be read. Those that were moved or touched keep the rows of their
        content."""
        known, here = self.files().set_index("file"), {file.key for file in found}
        good, unread = known[known["status"] == "ok"], []
        for file in found:
            row = known.loc[file.key] if file.key in known.index else None
            if row is not None and (row["size"], row["modified"]) == (file.size, file.modified):
                unread += [file] if retry and row["status"] != "ok" else []
                continue
            alike = good[good["size"] == file.size]
            twins = alike.index[alike["sha256"] == file.sha256] if len(alike) else []
            twin = next((key for key in twins if key == file.key or key not in here), None)
            if twin is None:
                unread.append(file)
            else:
                here.add(twin)  # its rows are taken
                self.table.update(f"file = '{twin}'", rows.identity(file))
        return unread

    def _write(self, tables: Iterator[pa.Table], files: int, title: str) -> None:
        bar = tqdm(desc=title, total=files, unit="video", disable=None if files else True)
        with bar, contextlib.closing(tables):  # type: ignore[type-var]
            for table in tables:
                self._put(table)
                bar.update(table["segment"].to_pylist().count(0))

    def _put(self, table: pa.Table) -> None:
        """Rows of whole files, in place of those the files had: in one step, or not at all."""
        files = _named(set(table["file"].to_pylist()))
        if self.table.count_rows(files) == 0:
            self.table.add(table, on_bad_vectors="null")
            return
        merge = self.table.merge_insert(["file", "segment"])
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete(files).execute(table, on_bad_vectors="null")

    def _remove_gone(self, folder: Path, found: Sequence[File]) -> None:
        known = self.table.search().where("segment = 0").select(["file", "name"]).to_arrow()
        below = os.fsencode(os.path.join(os.path.abspath(folder), ""))
        here = {file.key for file in found}
        pairs = zip(known["file"].to_pylist(), known["name"].to_pylist(), strict=True)
        gone = [key for key, name in pairs if name.startswith(below) and key not in here]
        for start in range(0, len(gone), CHUNK):
            self.table.delete(_named(gone[start : start + CHUNK]))

    def _settle(self) -> None:
        """Pack what was written in pieces, bring the approximate index up to date, and note what
        unrelated queries score."""
        self.table.optimize(cleanup_older_than=KEPT)
        self.card["unrelated"] = queries.unrelated(self.encoder, self.table, self.card["tensors"])
        _write_card(self._database, self.card)

    def search(
        self,
        query: str | Query,
        k: int = 10,
        where: str | None = None,
        *,
        shortlist: int = queries.SHORTLIST,
        min_score: float | None = None,
        prompts: str = "none",
    ) -> pd.DataFrame:
        """The best segments for a query: the nearest `shortlist` by global vector, then scored
        exactly by the method.

        Near-duplicates are one row, see `query.group`.

        Args:
            query: words; or what `encoder.video_query` or `encoder.image_query` return.
            k: rows, at most.
            where: a filter in SQL over the columns, "duration < 60 and path like '%holiday%'".
            shortlist: segments that are scored exactly.
            min_score: of a row.
            prompts: a key of `encoder.PROMPTS`.

        Returns:
            DataFrame by falling score: score, unrelated (share of unrelated queries whose best
            score here is no lower: above 10 % it says "nothing matches"), path, start and end (s),
            copies (places of near-duplicates), and what else is known of the file. `attrs` has
            `matches` (bool) and `notes`.

        Raises:
            ValueError: an unusable query, `k`, or filter.
        """
        if k < 1 or shortlist < k:
            raise ValueError(f"expected 1 <= k <= shortlist, got k {k}, shortlist {shortlist}")
        if isinstance(query, str):
            if not self.encoder.can_read(query):
                raise ValueError(f"the model does not know the script of {query[:40]!r}")
            query = self.encoder.text_query(query, prompts)
        self.table.checkout_latest()
        near = queries.nearest(self.table, [query], shortlist, where)[0]
        exact = queries.scores(query, near, self.card["tensors"])
        found = queries.ranked(near, exact, k, min_score)
        background = self.card["unrelated"].get(query.language, [])
        found["unrelated"] = queries.share(background, found["score"].to_numpy())
        matches = bool(len(found)) and not found["unrelated"][0] > queries.NOTHING
        found.attrs = {"query": query.label, "matches": matches, "notes": query.notes}
        return found[queries.SHOWN]

    def recall(self, asked: Sequence[Query], k: int = 10, **options) -> pd.DataFrame:
        """`query.shortlist_recall` of this index."""
        return queries.shortlist_recall(asked, self.table, self.card["tensors"], k, **options)


def exists(place: str) -> bool:
    """Whether there is an index."""
    if "://" not in place:
        return Path(place, f"{CARD}.lance").exists()
    return CARD in lancedb.connect(place).table_names()


def _create(place: str, encoder: Encoder) -> None:
    """An empty index; the card is written last: without it there is none."""
    kinds, database = rows.shapes(encoder), lancedb.connect(place)
    columns = rows.schema(kinds, encoder.method.backbone.width)
    database.create_table(SEGMENTS, schema=columns, mode="overwrite")
    _write_card(database, {"format": FORMAT, **encoder.card, "tensors": kinds})


def _write_card(database: Any, card: dict) -> None:
    database.create_table(CARD, [{"card": json.dumps(card)}], mode="overwrite")


@contextlib.contextmanager
def _only_builder(place: str) -> Iterator[None]:
    """One process builds. An object store has no lock: there, see to it yourself."""
    if "://" in place:
        yield
        return
    Path(place).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(place, ".lock"), timeout=0):
            yield
    except Timeout:
        raise OSError(f"another process is building {place}: wait until it is done") from None


@contextlib.contextmanager
def _room(place: str) -> Iterator[None]:
    """LanceDB's tale of a write that failed, as one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if "LanceError(IO)" not in str(error):
            raise
            reason = str(error).split("\n")[0]
        raise OSError(f"{place} could not be written: {reason}. {FULL}") from None


def _named(keys: Collection[str]) -> str:
    """A filter for these files; keys are letters and digits."""
    return f"file in ({', '.join(repr(key) for key in sorted(keys))})"
