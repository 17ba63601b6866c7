"""Two-stage search: the nearest segments by one vector, then the method's own score of each."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tvrkit.files import ASSETS
from tvrkit.search import rows
from tvrkit.search.encoder import Query

if TYPE_CHECKING:
    from tvrkit.search.index import Index

SHORTLIST = 200  # segments that are scored exactly
LENGTHS = (10, 20, 50, 100, 200, 500)  # of the short list whose recall is measured
SAME = 0.98  # cosine of two segments' vectors from which on they show the same
NOTHING = 0.1  # share of unrelated queries that may score as high as a match
ALL = 10_000  # rows that an exhaustive search holds at a time
SHOWN = ["score", "unrelated", "path", "start", "end", "duration", "copies"]
SHOWN += ["size", "date", "width", "height", "fps", "file", "segment"]


def nearest(
    table: Any, queries: Sequence[Query], count: int, where: str | None = None
) -> list[pa.Table]:
    """For each query the `count` rows whose vectors are nearest, with a filter applied before.

    Raises:
        ValueError: `where` is no filter.
    """
    vectors = np.stack([query.vector.numpy() for query in queries])
    search = table.search(vectors, vector_column_name="vector").distance_type("cosine")
    search = search.limit(count)
    if where is not None:
        # in brackets, a second statement is an error and is not dropped in silence
        search = search.where(f"({where})", prefilter=True)
    try:
        found = search.to_arrow()
    except ValueError as error:
        if where is None:
            raise
        reason = " ".join(str(error).split()).removeprefix("Invalid input, ")[:300]
        raise ValueError(f"filter {where!r}: {reason}") from None
    if len(queries) == 1:
        return [found]
    column = found["query_index"]
    return [found.filter(pa.compute.equal(column, i)) for i in range(len(queries))]


def scores(index: Index, query: Query, near: pa.Table) -> np.ndarray:
    """(N,) exact scores of rows."""
    if not len(near):
        return np.zeros(0, np.float32)
    return query.score(rows.to_features(near, index.card["tensors"])).numpy()


def ranked(index: Index, query: Query, near: pa.Table, k: int, min_score: float | None):
    """The `k` best groups of a short list, see `Index.search`."""
    exact = scores(index, query, near)
    order = np.argsort(-exact, kind="stable")
    if min_score is not None:
        order = order[exact[order] >= min_score]
    near, exact = near.take(pa.array(order)), exact[order]
    firsts, copies = group(near, k)
    frame = near.take(pa.array(firsts, pa.int64())).select(list(rows.FACTS)).to_pandas()
    frame["score"], frame["copies"] = exact[firsts], copies
    frame["unrelated"] = share(index, query, frame["score"].to_numpy())
    frame = frame[SHOWN]
    matches = bool(len(frame)) and not frame["unrelated"].iloc[0] > NOTHING
    frame.attrs = {"query": query.label, "matches": matches, "notes": query.notes}
    return frame


def group(near: pa.Table, k: int) -> tuple[list[int], list[list[str]]]:
    """Rows of the first `k` groups, and of each the places of its other rows.

    Of rows by falling score, one joins the first group whose first row it is nearly the same as:
    the cosine of their vectors reaches `SAME`, or they overlap in one video.
    """
    vectors = rows.to_vectors(near)
    spans = near.select(["file", "path", "start", "end"]).to_pylist()
    firsts: list[int] = []
    copies: list[list[str]] = []
    for row, span in enumerate(spans):
        cosines = vectors[firsts] @ vectors[row] if firsts else np.zeros(0)
        same = (
            number
            for number, first in enumerate(firsts)
            if cosines[number] >= SAME or _overlap(span, spans[first])
        )
        number = next(same, None)
        if number is not None:
            copies[number].append(f"{span['path']} {span['start']:.1f} s")
        elif len(firsts) < k:
            firsts.append(row)
            copies.append([])
    return firsts, copies


def _overlap(a: dict, b: dict) -> bool:
    return a["file"] == b["file"] and a["start"] < b["end"] and b["start"] < a["end"]


def unrelated(index: Index) -> dict[str, list[float]]:
    """The best score in the index of each query of `unrelated_*.txt`, rising, by language; one that
    needs a tagger which is not installed is left out."""
    found: dict[str, list[float]] = {}
    for language in ("en", "zh"):
        lines = (ASSETS / f"unrelated_{language}.txt").read_text(encoding="utf-8").splitlines()
        with contextlib.suppress(ValueError):
            asked = [index.encoder.text_query(line) for line in lines]
            lists = nearest(index.table, asked, SHORTLIST)
            best = [scores(index, *pair).max(initial=-1) for pair in zip(asked, lists, strict=True)]
            found[language] = sorted(map(float, best))
    return found


def share(index: Index, query: Query, values: np.ndarray) -> np.ndarray:
    """(N,) shares of unrelated queries whose best score is no lower than each of (N,) scores; NaN
    where that is not known."""
    background = index.card["unrelated"].get(query.language)
    if not background:
        return np.full(len(values), np.nan)
    return 1 - np.searchsorted(background, values) / len(background)


def exhaustive(index: Index, query: Query) -> pd.DataFrame:
    """Score of every segment: file, segment, score, falling. What the short list is measured
    against."""
    batches = index.table.search().where("status = 'ok'").to_batches(ALL)
    parts = []
    for batch in batches:
        table = pa.Table.from_batches([batch])
        part = table.select(["file", "segment", "path"]).to_pandas()
        parts.append(part.assign(score=scores(index, query, table)))
    return pd.concat(parts).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def shortlist_recall(
    index: Index, queries: Sequence[Query], k: int = 10, lengths: Sequence[int] = LENGTHS
) -> pd.DataFrame:
    """How much of the exhaustive ranking the short list keeps.

    Returns:
        DataFrame by length: `recall@1` and `recall@k`, shares (%) of the exhaustive ranking's first
        and first `k` segments that are in a short list of that length, mean over the queries.
    """
    lists = nearest(index.table, queries, max(lengths))
    hits = []
    for query, near in zip(queries, lists, strict=True):
        best = exhaustive(index, query).head(k)
        keys = list(zip(near["file"].to_pylist(), near["segment"].to_pylist(), strict=True))
        places = [
            keys.index(key) if key in keys else len(keys)
            for key in zip(best["file"], best["segment"], strict=True)
        ]
        hits.append(np.array(places))
    table = [
        {
            "length": n,
            "recall@1": np.mean([p[0] < n for p in hits]) * 100,
            f"recall@{k}": np.mean([(p < n).mean() for p in hits]) * 100,
        }
        for n in lengths
    ]
    return pd.DataFrame(table)
