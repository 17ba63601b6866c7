"""Two stages find what one exhaustive ranking finds; filters, duplicates and "nothing matches";
names and captions are escaped in every form of an answer."""

import json
import shutil

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from lancedb.index import IvfFlat

from tvrkit.data.batch import VideoFeatures
from tvrkit.data.features import pack, unpack
from tvrkit.search import query as queries
from tvrkit.search.encoder import Query
from tvrkit.search.index import Index
from tvrkit.shapes.captions import mention, tell


@pytest.fixture(scope="session")
def captions(scenes):
    rng = np.random.default_rng(0)
    return [tell(v.scene, mention(v.scene, 0.0, rng), "en", 0.0, rng)[0] for v in scenes]


def test_captions_find_their_videos(index, captions, scenes):
    hits = [
        index.search(caption, k=3)["path"].str.contains(v.video_id).any()
        for caption, v in zip(captions, scenes, strict=True)
    ]
    assert np.mean(hits) >= 0.75


def test_the_ranking_is_the_exhaustive_one(index, captions):
    table = index.table.to_arrow()
    features = unpack(table["features"].to_pylist())
    for caption in captions[:4]:
        query = index.encoder.text_query(caption)
        scores = dict(zip(table["path"].to_pylist(), query.score(features).tolist(), strict=True))
        found = index.search(query, k=12)
        assert found["path"].tolist() == sorted(scores, key=scores.get, reverse=True)
        assert found["score"].tolist() == pytest.approx(sorted(scores.values(), reverse=True))


def test_a_short_list_is_scored_exactly_and_measured(index, captions):
    asked = [index.encoder.text_query(caption) for caption in captions]
    table = queries.shortlist_recall(asked, index.table, k=3, lengths=(1, 6, 12)).set_index(
        "length"
    )
    assert table.loc[12].tolist() == [100, 100]
    assert table.loc[1, "recall@3"] == pytest.approx(100 / 3)
    assert table["recall@3"].is_monotonic_increasing
    few = index.search(captions[0], k=2, shortlist=2)
    assert len(few) == 2


def test_the_recall_is_that_of_all_segments_though_the_index_looks_into_few(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    videos = VideoFeatures(None, torch.tensor(vectors)[:, None], torch.ones(600, 1) > 0, {})
    made = {"status": ["ok"] * 600, "features": [pack(videos[i : i + 1]) for i in range(600)]}
    flat = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 8)
    table = lancedb.connect("memory://").create_table("t", pa.table(made | {"vector": flat}))

    def ask(vector):
        return Query("", vector, lambda videos: videos.frames[:, 0] @ torch.tensor(vector))

    asked = [ask(vector) for vector in vectors[:5]]
    recall = queries.shortlist_recall(asked, table, lengths=(10, 600)).set_index("length")
    assert recall.loc[600].tolist() == [100, 100]
    assert recall.loc[10, "recall@10"] > 95  # half precision may change a place
    kind = IvfFlat(distance_type="cosine", num_partitions=10)
    table.create_index("vector", config=kind)
    monkeypatch.setattr(queries, "PROBES", 1)
    recall = queries.shortlist_recall(asked, table, lengths=(10, 600)).set_index("length")
    assert recall.loc[600, "recall@10"] < 90


def test_filters_and_least_scores(index, scenes):
    everything = index.search("a circle", k=12)
    assert len(everything) == 12
    assert everything["score"].is_monotonic_decreasing
    names = [video.video_id for video in scenes[:2]]
    where = f"(path like '%{names[0]}%' or path like '%{names[1]}%') and duration < 60"
    found = index.search("a circle", k=12, where=where)["path"]
    assert sorted(path.rpartition("/")[2] for path in found) == [f"{name}.mp4" for name in names]
    assert index.search("a circle", where="duration > 60").empty


@pytest.mark.parametrize(
    "where",
    [
        "",
        "drop table segments",
        "nosuch = 3",
        "duration <",
        "duration + 1",
        "1=1; delete from segments",
        "'",
        "file in (select file from segments)",
    ],
)
def test_what_is_no_filter(index, where):
    count = index.table.count_rows()
    with pytest.raises(ValueError, match="filter") as raised:
        index.search("a circle", where=where)
    assert len(str(raised.value).splitlines()) == 1
    assert index.table.count_rows() == count


def test_unusable_searches(index):
    for options in ({"k": 0}, {"k": 5, "shortlist": 4}):
        with pytest.raises(ValueError, match="expected 1 <= k <= shortlist"):
            index.search("a circle", **options)
    with pytest.raises(ValueError, match="query: expected words"):
        index.search(" ")


def test_copies_of_a_video_are_one_hit(videos, tmp_path, encoder):
    first = sorted(videos.iterdir())[0]
    shutil.copy(first, videos / "copy.mp4")
    index = Index.build(videos, tmp_path / "index", encoder)
    found = index.search("a circle", k=10)
    assert len(found) == 4
    (copies,) = [row for row in found["copies"] if row]
    assert len(copies) == 1
    assert "copy.mp4" in copies[0] or first.name in copies[0]


def test_segments_that_overlap_are_one_hit():
    def row(file, start, end, *vector):
        return {"file": file, "path": file, "start": start, "end": end, "vector": vector}

    rows = [
        row("a", 0.0, 10.0, 1, 0),
        row("a", 5.0, 15.0, 0, 1),
        row("a", 15.0, 20.0, 0, -1),
        row("b", 0.0, 9.0, 0.999, 0.04),
        row("c", 0.0, 9.0, 0, -1),
        row("d", 0.0, 1.0, -1, 0),
    ]
    found = queries.ranked(pa.Table.from_pylist(rows), np.linspace(1, 0, 6), 10)
    assert found["path"].tolist() == ["a", "a", "d"]
    assert found["start"].tolist() == [0, 15, 0]
    assert found["copies"].tolist() == [["a 5.0 s", "b 0.0 s"], ["c 0.0 s"], []]
    alone = queries.ranked(pa.Table.from_pylist(rows), np.linspace(1, 0, 6), 1)
    assert alone["copies"].tolist() == [["a 5.0 s", "b 0.0 s"]]


def test_nothing_matches(index, captions):
    background = index.card["unrelated"]
    assert {len(scores) for scores in background.values()} == {40}
    known = [index.search(caption, k=1) for caption in captions]
    assert np.mean([table.attrs["matches"] for table in known]) > 0.5
    strange = index.search("a walrus plays the accordion on an ice floe", k=1)
    assert not strange.attrs["matches"]
    assert strange["unrelated"][0] > queries.NOTHING
    by_video = index.search(index.encoder.text_query(captions[0]), k=1)
    assert by_video["unrelated"].between(0, 1).all()


def test_a_video_as_the_query(index, corpus):
    path = sorted(corpus.iterdir())[2]
    found = index.search(index.encoder.file_query(path), k=2)
    assert found["path"][0] == str(path)
    assert np.isnan(found["unrelated"][0])
    assert found.attrs["matches"]


EVIL = "<script>alert('x')</script>\n\x1b[31m😀.mp4"
NAME = b"/v/a b\xff'\".mp4"


@pytest.fixture
def found():
    row = {"score": 0.5, "unrelated": 0.2, "path": EVIL, "start": 1.0, "end": 3.5}
    table = pd.DataFrame(
        [
            row
            | {
                "copies": ["a.mp4 0.0 s"],
                "file": "ab",
                "segment": 0,
                "name": NAME,
                "strip": b"jpeg",
                "features": b"",
                "vector": [1.0],
            }
        ]
    )
    table.attrs = {"query": "<b>red</b>", "matches": False, "notes": ["cut"]}
    return table


def test_a_hit_is_one_line(found):
    line = queries.to_lines(found)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert line.startswith("0.500  1.0-3.5 s  <script>")
    assert line.endswith("😀.mp4  (and 1 near-duplicates)")
    assert queries.notes(found) == ["cut", queries.UNRELATED]


def test_json_is_one_line_that_reads_back(found):
    text = queries.to_json(found)
    assert "\n" not in text
    read = json.loads(text)
    assert (read["query"], read["matches"]) == ("<b>red</b>", False)
    assert read["hits"][0]["path"] == EVIL


def test_the_page_escapes_and_links_to_the_time(found):
    page = queries.render([found])
    assert "<script>alert" not in page
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red" in page
    assert 'href="file:///v/a%20b%FF%27%22.mp4#t=1.00,3.50"' in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_server_plays_the_video_at_its_time(found):
    page = queries.render([found], "hits.html", served="/clip/0/")
    assert 'src="/clip/0/ab#t=1.00,3.50"' in page
    assert "file://" not in page
    assert "<script>alert" not in page
