"""The index of a folder of videos: built, kept current and searched.

All there is lies in one table of a LanceDB database; what it was made with stands in its schema.
Its place is a folder, or the address of an object store.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of every table that is made
import lancedb
import pandas as pd
import pyarrow as pa
from lancedb.index import IvfSq
from tqdm import tqdm

from tvrkit.data.features import unpack
from tvrkit.files import ASSETS, alone, expect
from tvrkit.search.clips import SECONDS, Row, content, find
from tvrkit.search.encoder import ENGINES, FACTS, FORMAT, Encoder, Query
from tvrkit.search.query import NOTHING, SHORTLIST, SHOWN, nearest, ranked
from tvrkit.settings import choose

SEGMENTS = "segments"
KEPT = timedelta(minutes=10)  # a search under way may go on reading an old version so long
APPROXIMATE = 50_000  # rows from which on an approximate index pays; below, every vector is read
PACK = 500  # tables after which they are packed, or else each costs more than the one before
GROWTH = 4  # it is made anew when there are so many times the rows it was made of
STATE = ["file", "size", "date"]
STORE = {"client_retry_timeout": "30"}  # seconds that an object store may not answer
FULL = "What was finished is kept: make room and run the same command again"


class Index:
    """An index that is open. Use `Index.open` or `Index.build`.

    Attributes:
        place: folder or address.
        table: LanceDB's table of segments.
    """

    def __init__(self, place: str, encoder: Encoder | None = None):
        self.place, self.table = place, opened(place)
        if self.table is None:
            raise FileNotFoundError(f"no index at {place}: `tvrkit index` makes it")
        if self.card.get("made", {}).get("format") != str(FORMAT):
            raise ValueError(f"{place} is of another version of the kit: index anew elsewhere")
        if encoder is not None:
            self.encoder = self._own(encoder)

    @property
    def card(self) -> dict[str, Any]:
        """What it was made with, and the scores of unrelated queries: kept beside the vectors."""
        return json.loads((self.table.schema.field("vector").metadata or {}).get(b"card", "{}"))

    def note(self, **news: Any) -> None:
        """Put this onto the card."""
        text = json.dumps(self.card | news)
        self.table.update_field_metadata({"path": "vector", "metadata": {"card": text}})

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
        touched or moved keeps its rows. Those of files that are gone from `folder`, or not the
        same, are removed at once; other folders may share the index.

        Args:
            folder: any tree of video files.
            place: folder of the index, or the address of an object store.
            encoder: the model that describes the videos.
            seconds: of a segment.
            engine: a key of `encoder.ENGINES`.
            workers: that decode.
            retry: read again what had failed.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no video in it, or the index is of another model.
            OSError: another process builds this index, or the disk is full.
        """
        place, rows = str(place), find(Path(folder))
        run = ENGINES[choose("engine", engine, ENGINES)]
        expect(seconds > 0, "seconds of a segment", "more than 0", f"{seconds:g}")
        expect(rows or opened(place) is not None, folder, "videos, such as .mp4 or .mkv", "none")
        with only_builder(place):
            opened(place, encoder.columns())
            index = cls.open(place, encoder)
            before = index.table.version
            unread = index._sort_out(folder, rows, retry)
            with tqdm(desc=f"indexing {folder}", total=len(unread), unit="video") as bar:
                for number, table in enumerate(run(unread, encoder, seconds, workers, bar), 1):
                    index.table.add(table, on_bad_vectors="null")
                    if number % PACK == 0:
                        index.settle()
            if index.table.version != before or "unrelated" not in index.card:
                index.settle()
                index.note(unrelated=index.unrelated_scores())
        return index

    @cached_property
    def encoder(self) -> Encoder:
        """The model it was made with.

        Raises:
            FileNotFoundError: it is no longer there.
            ValueError: it is another one by now.
        """
        return self._own(Encoder(*self.card["model"]))

    def _own(self, encoder: Encoder) -> Encoder:
        """The same; ValueError where the index was made with another model."""
        made = self.card["made"]
        other = dict(encoder.card.items() - made.items())
        where, wanted = f"{self.place} is an index of another model", {k: made[k] for k in other}
        expect(not other, where, wanted, other)
        return encoder

    def files(self) -> pd.DataFrame:
        """A row per file: path, status "ok" or "failed", reason, and what else is known of it."""
        return self.table.search().where("segment = 0").select([*FACTS]).to_arrow().to_pandas()

    def failures(self) -> pd.DataFrame:
        """`files` that gave no frames, or are damaged."""
        return self.files().query("reason != ''")

    def _sort_out(self, folder: Path | str, rows: list[Row], retry: bool) -> list[Row]:
        """Give rows of files that were touched or moved, from any folder, the time and name these
        have now; remove those of files that are gone or have changed; return what must be read."""
        known = self.files().astype({"date": "int64"})
        whole, hashes = known["status"] == "ok", known["sha256"]
        settled = {*known[whole | (not retry)][STATE].itertuples(index=False, name=None)}
        stale = {row["file"]: row for row in rows if (*map(row.get, STATE),) not in settled}
        below = os.fsencode(os.path.join(os.path.abspath(folder), ""))
        inside = [name.startswith(below) for name in known["name"]]
        gone = {*known["file"][inside]} - {row["file"] for row in rows}
        old = gone | stale.keys()
        # of several files with the same content none is known by it
        sole = known[whole & (hashes != "") & ~hashes.duplicated(keep=False)]
        sole = sole[sole["size"].isin([row["size"] for row in stale.values()])]
        free = sole[sole["file"].isin(old) | ~sole["name"].map(os.path.exists).astype(bool)]
        sizes = {*free["size"]}
        same = pd.Series({k: content(r) for k, r in stale.items() if r["size"] in sizes}, dtype=str)
        moved = same[same.isin(free["sha256"])].drop_duplicates()
        if old:
            self.table.delete(f"{_among('file', old)} and not {_among('sha256', ['none', *moved])}")
        if len(moved):
            renamed = [stale.pop(key) | {"sha256": known_as} for key, known_as in moved.items()]
            kinds = pa.schema({name: FACTS[name] for name in renamed[0]})
            merge = self.table.merge_insert("sha256").when_matched_update_all()
            merge.execute(pa.Table.from_pylist(renamed, kinds))
        return [*stale.values()]

    def settle(self) -> None:
        """Pack what was written in pieces, and keep an approximate index of many vectors."""
        count, names = self.table.count_rows(), [each.name for each in self.table.list_indices()]
        indexed = sum(self.table.index_stats(name).num_indexed_rows for name in names)
        if count >= APPROXIMATE and count > GROWTH * indexed:
            kind = IvfSq(distance_type="cosine", num_partitions=math.isqrt(count) // 2)
            self.table.create_index("vector", config=kind)
        self.table.optimize(cleanup_older_than=KEPT)

    def unrelated_scores(self) -> dict[str, list[float]]:
        """The best score here of each query of `unrelated_*.txt`, by language; one that needs a
        tagger which is not installed is left out."""
        scores = {}
        for language in ("en", "zh"):
            lines = (ASSETS / f"unrelated_{language}.txt").read_text(encoding="utf-8").splitlines()
            with contextlib.suppress(ValueError):
                scores[language] = [float(s) for q in lines for s in self.search(q, k=1)["score"]]
        return scores

    def search(
        self, query: str | Query, k: int = 10, where: str | None = None, shortlist: int = SHORTLIST
    ) -> pd.DataFrame:
        """The best segments for a query: the nearest `shortlist` by global vector, then scored
        exactly by the method.

        Near-duplicates are one row, see `query.ranked`.

        Args:
            query: words; or what the encoder's `text_query` and `file_query` return.
            k: rows, at most.
            where: a filter in SQL over the columns, "duration < 60 and path like '%holiday%'".
            shortlist: segments that are scored exactly.

        Returns:
            DataFrame by falling score: score, unrelated (share of unrelated queries whose best
            score here is no lower: above 10 % it says "nothing matches"), path, start and end (s),
            copies (places of near-duplicates), and what else is known of the file. `attrs` has
            `query`, its `language`, `matches` (bool) and `notes`.

        Raises:
            ValueError: an unusable query, `k`, or filter.
        """
        expect(1 <= k <= shortlist, "search", "1 <= k <= shortlist", f"{k} and {shortlist}")
        if isinstance(query, str):
            query = self.encoder.text_query(query)
        self.table.checkout_latest()
        near = nearest(self.table, query.vector, shortlist, where)
        exact = query.score(unpack(near["features"].to_pylist())).numpy() if len(near) else ()
        hits = ranked(near, exact, k)
        background = pd.Series(self.card.get("unrelated", {}).get(query.language, []), dtype=float)
        hits["unrelated"] = [background.ge(score).mean() for score in hits["score"]]
        matches = bool(len(hits)) and not hits["unrelated"][0] > NOTHING
        hits.attrs = {"query": query.label, "language": query.language}
        hits.attrs |= {"matches": matches, "notes": query.notes}
        return hits[SHOWN]


def opened(place: str, columns: pa.Schema | None = None) -> Any:
    """LanceDB's table of an index. Where there is none: None, or with `columns` one that is empty.

    Raises:
        OSError: the object store does not answer, or refuses.
    """
    if columns is None and "://" not in place and not Path(place).is_dir():
        return None
    try:
        store = lancedb.connect(place, storage_options=STORE)
        return store.open_table(SEGMENTS)
    except (ValueError, RuntimeError) as error:
        if "was not found" in str(error):
            return None if columns is None else store.create_table(SEGMENTS, schema=columns)
        raise OSError(f"{place} cannot be reached: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What a store answered, out of all that LanceDB tells about it."""
    answers = re.findall(r'<Message>(.+?)</Message>|message: "(.+?)"', str(error))
    return max(answers[-1]) if answers else re.split(r"\n|, /", str(error))[0]


@contextlib.contextmanager
def only_builder(place: str) -> Iterator[None]:
    """This process alone builds (an object store has no lock: there, see to it yourself), and a
    write that fails is one line."""
    busy = f"another process is building {place}: wait until it is done"
    local = contextlib.nullcontext() if "://" in place else alone(Path(place, ".lock"), busy)
    try:
        with local:
            yield
    except (OSError, RuntimeError) as error:
        if "LanceError(IO)" not in str(error):
            raise
        raise OSError(f"{place} could not be written: {_reason(error)}. {FULL}") from None


def _among(column: str, values: Iterable[str]) -> str:
    """A filter; the values are letters and digits."""
    return f"{column} in ({', '.join(map(repr, values))})"
