"""Two-stage search: the nearest segments by one vector, then the method's own score of each."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tvrkit.files import ASSETS
from tvrkit.search import rows
from tvrkit.search.encoder import Encoder, Query

SHORTLIST = 200  # segments that are scored exactly
LENGTHS = (10, 20, 50, 100, 200, 500)  # of the short list whose recall is measured
SAME = 0.98  # cosine of two segments' vectors from which on they show the same
NOTHING = 0.1  # share of unrelated queries that may score as high as a match
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


def scores(query: Query, near: pa.Table) -> np.ndarray:
    """(N,) exact scores of rows."""
    if not len(near):
        return np.zeros(0, np.float32)
    return query.score(rows.unpack(near["features"].to_pylist())).numpy()


def ranked(near: pa.Table, exact: np.ndarray, k: int, min_score: float | None) -> pd.DataFrame:
    """The `k` best groups of a short list with its exact scores (N,), see `Index.search`."""
    order = np.argsort(-exact, kind="stable")
    if min_score is not None:
        order = order[exact[order] >= min_score]
    near = near.take(pa.array(order))
    firsts, copies = group(near, k)
    frame = near.take(pa.array(firsts, pa.int64())).select(list(rows.FACTS)).to_pandas()
    return frame.assign(score=exact[order][firsts], copies=copies)


def group(near: pa.Table, k: int) -> tuple[list[int], list[list[str]]]:
    """Rows of the first `k` groups, and of each the places of its other rows.

    Of rows by falling score, one joins the first group whose first row it is nearly the same as:
    the cosine of their vectors reaches `SAME`, or they overlap in one video.
    """
    vectors = np.array(near["vector"].to_pylist(), np.float32)
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


def unrelated(encoder: Encoder, table: Any) -> dict[str, list[float]]:
    """The best score in the index of each query of `unrelated_*.txt`, rising, by language; one that
    needs a tagger which is not installed is left out."""
    found: dict[str, list[float]] = {}
    for language in ("en", "zh"):
        lines = (ASSETS / f"unrelated_{language}.txt").read_text(encoding="utf-8").splitlines()
        with contextlib.suppress(ValueError):
            asked = [encoder.text_query(line) for line in lines]
            pairs = zip(asked, nearest(table, asked, SHORTLIST), strict=True)
            found[language] = sorted(float(scores(*pair).max(initial=-1)) for pair in pairs)
    return found


def share(background: Sequence[float], values: np.ndarray) -> np.ndarray:
    """(N,) shares of a rising background that are no lower than each of (N,) scores; NaN where
    there is none."""
    if not background:
        return np.full(len(values), np.nan)
    return 1 - np.searchsorted(background, values) / len(background)


def shortlist_recall(
    queries: Sequence[Query], table: Any, k: int = 10, lengths: Sequence[int] = LENGTHS
) -> pd.DataFrame:
    """How much of the exhaustive ranking the short list keeps.

    Returns:
        DataFrame by length: `recall@1` and `recall@k`, shares (%) of the exhaustive ranking's first
        and first `k` segments that are in a short list of that length, mean over the queries.
    """
    places = []
    for query in queries:
        everything = nearest(table, [query], table.count_rows())[0]
        places.append(np.argsort(-scores(query, everything), kind="stable")[:k])
    found = np.stack(places)[..., None] < np.array(lengths)
    recalls = {"recall@1": found[:, 0].mean(axis=0), f"recall@{k}": found.mean(axis=(0, 1))}
    return pd.DataFrame({"length": lengths} | {key: 100 * r for key, r in recalls.items()})
