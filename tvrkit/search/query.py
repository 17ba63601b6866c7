"""Two-stage search: the nearest segments by one vector, then the method's own score of each; and
what was found as lines, as JSON and as a page."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tvrkit import html
from tvrkit.data.features import unpack
from tvrkit.files import on_one_line
from tvrkit.search.encoder import FACTS, SEEN, Query

SHORTLIST = 200  # segments that are scored exactly
LENGTHS = (10, 20, 50, 100, 200, 500)  # of the short list whose recall is measured
PROBES = 100  # partitions of an approximate index that are looked into
SAME = 0.98  # cosine of two segments' vectors from which on they show the same
NOTHING = 0.1  # share of unrelated queries that may score as high as a match
UNRELATED = "nothing matches: unrelated queries score as high"
SHOWN = ["score", "unrelated", "copies", *FACTS, *SEEN, "vector"]


def nearest(table: Any, vector: Any, count: int, where: str | None = None) -> pa.Table:
    """The `count` rows whose vectors are nearest to `vector` (D,), of those that pass the filter.

    Raises:
        ValueError: `where` is no filter.
    """
    search = table.search(vector, vector_column_name="vector").with_row_id(True)
    search = search.distance_type("cosine").limit(count).nprobes(PROBES)
    try:  # in brackets, a second statement is an error and is not dropped in silence
        return (search if where is None else search.where(f"({where})")).to_arrow()
    except ValueError as error:
        reason = " ".join(str(error).split(", /")[0].split()).removeprefix("Invalid input, ")
        raise ValueError(f"filter {where!r:.300}: {reason:.300}") from None


def ranked(near: pa.Table, exact: Any, k: int) -> pd.DataFrame:
    """The best rows of a short list with its exact scores (N,), by falling score; `copies` are the
    places of rows that are nearly the same as a better one.

    Nearly the same: the cosine of their vectors reaches `SAME`, or they overlap in one video.
    """
    frame = near.to_pandas().assign(score=exact)
    frame = frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    vectors = np.array([*frame["vector"]])
    file, start, end = (frame[name].to_numpy() for name in ("file", "start", "end"))
    overlap = (file[:, None] == file) & (start[:, None] < end) & (start < end[:, None])
    # the best one that each is the same as
    frame["first"] = [row.argmax() for row in overlap | (vectors @ vectors.T >= SAME)]
    places = frame["path"] + frame["start"].map(" {:.1f} s".format).astype(str)
    best = frame.drop_duplicates("first", ignore_index=True).head(k)
    copies = [places[frame["first"] == first][1:].tolist() for first in best["first"]]
    return best.assign(copies=copies)


def shortlist_recall(
    queries: Sequence[Query], table: Any, k: int = 10, lengths: Sequence[int] = LENGTHS
) -> pd.DataFrame:
    """How much of the exhaustive ranking the short list keeps.

    Returns:
        DataFrame by length: `recall@1` and `recall@k`, shares (%) of the first and of the first `k`
        of all segments, each scored exactly, that are in a short list of that length; mean over the
        queries.
    """
    everything = table.search().where("status = 'ok'").select(["features"]).with_row_id(True)
    exact, ids = [], []
    for batch in everything.to_batches():
        videos = unpack(batch["features"].to_pylist())
        exact.append(np.stack([query.score(videos).numpy() for query in queries]))
        ids.append(batch["_rowid"])
    order = np.argsort(-np.concatenate(exact, axis=1), kind="stable")
    best = np.concatenate(ids)[order[:, :k]]
    near = [nearest(table, query.vector, max(lengths))["_rowid"].to_numpy() for query in queries]
    pairs = [*zip(best, near, strict=True)]
    # (lengths, queries, k) percent
    held = 100 * np.array([[np.isin(top, short[:n]) for top, short in pairs] for n in lengths])
    recalls = {"recall@1": held[..., 0].mean(axis=1), f"recall@{k}": held.mean(axis=(1, 2))}
    return pd.DataFrame({"length": lengths} | recalls)


def notes(result: pd.DataFrame) -> list[str]:
    """What the searcher should know."""
    if not len(result):
        return [*result.attrs["notes"], "no segment passes the filter and the least score"]
    return result.attrs["notes"] + [UNRELATED] * (not result.attrs["matches"])


def to_lines(result: pd.DataFrame) -> str:
    """A line for each hit; control characters of names are escaped."""
    return "\n".join(
        f"{hit.score:.3f}  {hit.start:.1f}-{hit.end:.1f} s  {on_one_line(hit.path)}"
        + (f"  (and {len(hit.copies)} near-duplicates)" if hit.copies else "")
        for hit in result.itertuples()
    )


def to_json(result: pd.DataFrame) -> str:
    """One line: query, matches, notes and hits."""
    table = result.drop(columns=["name", *SEEN, "vector"])
    hits = table.to_json(orient="records", date_format="iso", double_precision=6)
    return json.dumps({**result.attrs, "hits": json.loads(hits)}, ensure_ascii=False)


def render(tables: list[pd.DataFrame], template: str = "search.html", served: str = "") -> str:
    """A page that needs no other file: film strips inside, links to the videos at their time.

    Args:
        tables: tables of `Index.search`.
        template: of `assets/`; "hits.html" is the part without the frame.
        served: where a server plays the videos, the address before their keys.
    """
    searches = [(table.attrs["query"], notes(table), list(table.itertuples())) for table in tables]
    return html.render(template, title="search", searches=searches, served=served)
