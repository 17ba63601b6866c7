"""The index of a folder of videos: built, kept current and searched.

All there is lies in a LanceDB database: the table `segments`, and the table `card` of one row that
says what it was made with. Its place is a folder, or the address of an object store.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of every table that is made
import lancedb
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm import tqdm

from tvrkit.files import ASSETS
from tvrkit.search import query as queries
from tvrkit.search import rows
from tvrkit.search.clips import SECONDS, File, find
from tvrkit.search.encoder import Encoder, Query
from tvrkit.settings import choose

SEGMENTS, CARD = "segments", "card"
KEPT = timedelta(minutes=10)  # a search under way may go on reading an old version so long
FACTS = ["file", "path", "name", "size", "modified", "sha256", "status", "reason"]
APPROXIMATE = 50_000  # rows from which on an approximate index pays; below, every vector is read
GROWTH = 4  # it is made anew when there are so many times the rows it was made of
STORE = {"client_retry_timeout": "30"}  # seconds that an object store may not answer
FULL = "What was finished is kept: make room and run the same command again"


class Index:
    """An index that is open. Use `Index.open` or `Index.build`.

    Attributes:
        place: folder or address.
        card: what it was made with.
        table: LanceDB's table of segments.
    """

    def __init__(self, place: str, encoder: Encoder | None = None):
        self.place, self._database = place, database(place)
        if self._database is None:
            raise FileNotFoundError(f"no index at {place}: `tvrkit index` makes it")
        self.card = json.loads(self._database.open_table(CARD).to_arrow()["card"][0].as_py())
        self.table: Any = self._database.open_table(SEGMENTS)
        if encoder is not None:
            self.check(encoder)
            self.encoder = encoder

    @classmethod
    def open(cls, place: Path | str, encoder: Encoder | None = None) -> Self:
        """An index that is there.

        Args:
            place: folder or address.
            encoder: the model it was made with, where it is loaded already; else it is loaded when
                a search needs it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was made with another model, or by another version of the kit.
        """
        return cls(str(place), encoder)

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
    ) -> Self:
        """Make the index of a folder, or bring it up to date; stopped at any moment, the next call
        goes on.

        Only what is new or has changed is read: by size and time, then by hash. A file that was
        moved keeps its rows, and so does a copy. Rows of files that are gone from `folder` are
        removed; other folders may share the index.

        Args:
            folder: any tree of video files.
            place: folder of the index, or the address of an object store.
            encoder: the model that describes the videos.
            seconds: of a segment.
            engine: a key of `rows.ENGINES`.
            workers: that decode.
            retry: read again what had failed.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no video in it, or the index is of another model.
            OSError: another process builds this index, or the disk is full.
        """
        place, folder = str(place), Path(folder)
        run = rows.ENGINES[choose("engine", engine, rows.ENGINES)]
        found = find(folder)
        if not found and not database(place):
            raise ValueError(f"{folder}: expected videos, such as .mp4 or .mkv, found none")
        with _building(place):
            if not database(place):
                _create(place, encoder)
            index = cls.open(place, encoder)
            before = index.table.version
            unread, moved = index._changed(found, retry)
            tables = chain(index._renamed(moved), run(unread, encoder, seconds, workers))
            total = len(unread) + len(moved)
            with tqdm(desc=f"indexing {folder}", total=total, unit="video") as bar:
                for table in tables:
                    index._put(table)
                    bar.update(table["segment"].to_pylist().count(0))
            index._remove_gone(folder, found)
            if index.table.version != before or "unrelated" not in index.card:
                index.settle()
                index.card["unrelated"] = index._unrelated()
                _write_card(index._database, index.card)
        return index

    @cached_property
    def encoder(self) -> Encoder:
        """The model it was made with.

        Raises:
            FileNotFoundError: it is no longer there.
            ValueError: it is another one by now.
        """
        encoder = Encoder(*self.card["model"])
        self.check(encoder)
        return encoder

    def check(self, encoder: Encoder) -> None:
        """ValueError where the index was made with another model."""
        other = dict(encoder.card.items() - self.card["made"].items())
        if other:
            expected = {key: self.card["made"][key] for key in other}
            what = f"is an index of another model: expected {expected}, got {other}"
            raise ValueError(f"{self.place} {what}")

    def files(self) -> pd.DataFrame:
        """A row per file: path, status "ok" or "failed", reason, and what else is known of it."""
        return self.table.search().where("segment = 0").select(FACTS).to_arrow().to_pandas()

    def failures(self) -> pd.DataFrame:
        """Path, status and reason of each file that gave no frames, or is damaged."""
        files = self.files()
        return files.loc[files["reason"] != "", ["path", "status", "reason"]]

    def _changed(self, found: Sequence[File], retry: bool) -> tuple[list[File], dict[File, str]]:
        """Files that must be read; and those that were touched, moved or copied, with the key of a
        file whose rows have their content."""
        known = self.files()
        whole = known[known["status"] == "ok"]
        settled = (whole if retry else known).itertuples()
        kept = {(row.file, row.size, row.modified) for row in settled}
        keys = {file: rows.identity(file)["file"] for file in found}
        stale = {key: f for f, key in keys.items() if (key, f.size, f.modified) not in kept}
        # rows that are about to be replaced serve their own file only
        held = {row.sha256: row.file for row in whole.itertuples() if row.file not in stale}
        own = {(row.file, row.sha256) for row in whole.itertuples()}
        sizes = {*whole["size"]}
        unread, moved = [], {}
        for key, file in stale.items():
            content = file.sha256 if file.size in sizes else ""
            if holder := key if (key, content) in own else held.get(content):
                moved[file] = holder
            else:
                unread.append(file)
        return unread, moved

    def _renamed(self, moved: dict[File, str]) -> Iterator[pa.Table]:
        """Rows that are there, under the name and time their files have now."""
        for start in range(0, len(moved), rows.COMMIT):
            batch = dict([*moved.items()][start : start + rows.COMMIT])
            there = self.table.search().where(_named({*batch.values()})).to_arrow()
            pairs = product(batch.items(), there.to_pylist())
            made = [row | rows.identity(f) for (f, key), row in pairs if row["file"] == key]
            yield pa.Table.from_pylist(made, there.schema)

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
        known, below = self.files(), os.fsencode(os.path.join(os.path.abspath(folder), ""))
        gone = ~known["name"].isin({os.fsencode(file.path) for file in found})
        gone &= known["name"].map(lambda name: name.startswith(below)).astype(bool)
        if gone.any():
            self.table.delete(_named(set(known.loc[gone, "file"])))

    def settle(self) -> None:
        """Pack what was written in pieces, and keep an approximate index of many vectors."""
        count, names = self.table.count_rows(), [one.name for one in self.table.list_indices()]
        indexed = sum(self.table.index_stats(name).num_indexed_rows for name in names)
        if count >= APPROXIMATE and count > GROWTH * indexed:
            partitions = math.isqrt(count) // 2
            self.table.create_index("cosine", index_type="IVF_SQ", num_partitions=partitions)
        self.table.optimize(cleanup_older_than=KEPT)

    def _unrelated(self) -> dict[str, list[float]]:
        """The best score here of each query of `unrelated_*.txt`, rising, by language; one that
        needs a tagger which is not installed is left out."""
        found = {}
        for language in ("en", "zh"):
            lines = (ASSETS / f"unrelated_{language}.txt").read_text(encoding="utf-8").splitlines()
            with contextlib.suppress(ValueError):
                hits = [self.search(line, k=1)["score"] for line in lines]
                found[language] = sorted(float(best.max()) for best in hits if len(best))
        return found

    def search(
        self,
        query: str | Query,
        k: int = 10,
        where: str | None = None,
        *,
        shortlist: int = queries.SHORTLIST,
        min_score: float = -math.inf,
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
            query = self.encoder.text_query(query, prompts)
        self.table.checkout_latest()
        near = queries.nearest(self.table, query, shortlist, where)
        found = queries.ranked(near, queries.scores(query, near), k)
        found = found[found["score"] >= min_score].reset_index(drop=True)
        background = self.card.get("unrelated", {}).get(query.language, [])
        found["unrelated"] = [pd.Series(background).ge(score).mean() for score in found["score"]]
        matches = bool(len(found)) and not found["unrelated"][0] > queries.NOTHING
        found.attrs = {"query": query.label, "matches": matches, "notes": query.notes}
        return found[queries.SHOWN]


def database(place: str) -> Any:
    """LanceDB's database of an index, None where there is none.

    Raises:
        OSError: the object store does not answer, or refuses.
    """
    if "://" not in place and not Path(place).is_dir():
        return None
    try:
        found = lancedb.connect(place, storage_options=STORE)
        return found if CARD in found.list_tables().tables else None
    except (ValueError, RuntimeError) as error:
        raise OSError(f"{place} cannot be reached: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What a store answered, out of all that LanceDB tells about it."""
    answers = re.findall(r'<Message>(.+?)</Message>|message: "(.+?)"', str(error))
    return max(answers[-1]) if answers else re.split(r"\n|, /", str(error))[0]


def _create(place: str, encoder: Encoder) -> None:
    """An empty index; the card is written last: without it there is none."""
    empty = lancedb.connect(place, storage_options=STORE)
    columns = rows.schema(encoder.method.backbone.width)
    empty.create_table(SEGMENTS, schema=columns, mode="overwrite")
    _write_card(empty, {"model": encoder.model, "made": encoder.card})


def _write_card(made: Any, card: dict) -> None:
    made.create_table(CARD, [{"card": json.dumps(card)}], mode="overwrite")


@contextlib.contextmanager
def _building(place: str) -> Iterator[None]:
    """This process alone builds (an object store has no lock: there, see to it yourself), and a
    write that fails is one line."""
    lock: Any = contextlib.nullcontext()
    if "://" not in place:
        Path(place).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(place, ".lock"), timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise OSError(f"another process is building {place}: wait until it is done") from None
    except (OSError, RuntimeError) as error:
        if "LanceError(IO)" not in str(error):
            raise
        raise OSError(f"{place} could not be written: {_reason(error)}. {FULL}") from None


def _named(keys: Collection[str]) -> str:
    """A filter for these files; keys are letters and digits."""
    return f"file in ({', '.join(repr(key) for key in sorted(keys))})"
