"""Two-stage search: the nearest segments by one vector, then the method's own score of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tvrkit.search import rows
from tvrkit.search.encoder import Query

SHORTLIST = 200  # segments that are scored exactly
LENGTHS = (10, 20, 50, 100, 200, 500)  # of the short list whose recall is measured
PROBES = 100  # partitions of an approximate index that are looked into
SAME = 0.98  # cosine of two segments' vectors from which on they show the same
NOTHING = 0.1  # share of unrelated queries that may score as high as a match
SHOWN = ["score", "unrelated", "path", "start", "end", "duration", "copies"]
SHOWN += ["size", "date", "width", "height", "fps", "file", "segment", "name", "strip", "features"]


def nearest(table: Any, query: Query, count: int, where: str | None = None) -> pa.Table:
    """The `count` rows whose vectors are nearest, of those that pass the filter.

    Raises:
        ValueError: `where` is no filter.
    """
    search = table.search(query.vector.numpy(), vector_column_name="vector")
    search = search.distance_type("cosine").limit(count).nprobes(PROBES)
    if where is None:
        return search.to_arrow()
    try:  # in brackets, a second statement is an error and is not dropped in silence
        return search.where(f"({where})", prefilter=True).to_arrow()
    except ValueError as error:
        reason = " ".join(str(error).split()).removeprefix("Invalid input, ")[:300]
        raise ValueError(f"filter {where!r}: {reason}") from None


def scores(query: Query, near: pa.Table) -> np.ndarray:
    """(N,) exact scores of rows."""
    if not len(near):
        return np.zeros(0, np.float32)
    return query.score(rows.unpack(near["features"].to_pylist())).numpy()


def ranked(near: pa.Table, exact: np.ndarray, k: int) -> pd.DataFrame:
    """The best rows of a short list with its exact scores (N,), by falling score; `copies` are the
    places of rows that are nearly the same as a better one.

    Nearly the same: the cosine of their vectors reaches `SAME`, or they overlap in one video.
    """
    frame = near.to_pandas().assign(score=exact)
    frame = frame.sort_values("score", ascending=False, kind="stable")
    vectors = np.array([*frame.pop("vector")])
    file, start, end = (frame[name].to_numpy() for name in ("file", "start", "end"))
    copies: dict[int, list[str]] = {}  # by the row they are copies of
    for row, path in enumerate(frame["path"]):
        firsts = [*copies]
        overlap = (
            (file[firsts] == file[row]) & (start[firsts] < end[row]) & (start[row] < end[firsts])
        )
        same = np.flatnonzero((vectors[firsts] @ vectors[row] >= SAME) | overlap)
        if len(same):
            copies[firsts[same[0]]].append(f"{path} {start[row]:.1f} s")
        elif len(firsts) < k:
            copies[row] = []
    return frame.iloc[[*copies]].assign(copies=[*copies.values()]).reset_index(drop=True)


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
        everything = nearest(table, query, table.count_rows())
        places.append(np.argsort(-scores(query, everything), kind="stable")[:k])
    found = np.stack(places)[..., None] < np.array(lengths)
    recalls = {"recall@1": found[:, 0].mean(axis=0), f"recall@{k}": found.mean(axis=(0, 1))}
    return pd.DataFrame({"length": lengths} | {key: 100 * r for key, r in recalls.items()})
