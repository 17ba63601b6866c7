"""An index is built, kept current, survives what happens to it, and refuses what it must."""

import os
import shutil
import signal
import subprocess
import sys

import lancedb
import pytest
from lancedb.index import IvfSq

from tests.data.video_files import write_audio
from tests.search.conftest import EMBEDDED
from tvrkit.data.decoders import DecodePool
from tvrkit.search import encoder as encoders
from tvrkit.search import index as indexes
from tvrkit.search.encoder import Encoder
from tvrkit.search.index import Index


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that a build decodes."""
    names, read = [], encoders.read

    def spy(pool, row, *arguments):
        names.append(os.path.basename(row["path"]))
        return read(pool, row, *arguments)

    monkeypatch.setattr(encoders, "read", spy)
    return names


def paths(index):
    return sorted(os.path.basename(path) for path in index.files()["path"])


def test_a_row_per_segment(index, corpus):
    files = index.files()
    assert paths(index) == sorted(os.listdir(corpus))
    assert set(files["status"]) == {"ok"}
    assert index.failures().empty
    table = index.table.to_arrow()
    assert len(table) == 12
    assert table["vector"].null_count == 0
    assert table["strip"][0].as_py()[:2] == b"\xff\xd8"
    assert index.card["made"]["weights"]


def test_nothing_is_read_twice(videos, place, encoder, reads):
    first = Index.build(videos, place, encoder).table.version
    assert len(reads) == 4
    reads.clear()
    assert Index.build(videos, place, encoder).table.version == first
    assert reads == []


def test_new_changed_touched_moved_and_removed(videos, place, encoder, corpus, reads):
    Index.build(videos, place, encoder)
    reads.clear()
    a, b, c, d = sorted(videos.iterdir())
    more = sorted(corpus.iterdir())[5:7]
    shutil.copy(more[0], videos / "new.mp4")
    shutil.copy(more[1], a)  # changed
    os.utime(b)  # touched
    (videos / "sub").mkdir()
    c.rename(videos / "sub" / "moved.mp4")
    d.unlink()
    index = Index.build(videos, place, encoder)
    assert sorted(reads) == sorted([a.name, "new.mp4"])
    assert paths(index) == sorted([a.name, b.name, "moved.mp4", "new.mp4"])
    found = index.files().set_index("path")
    assert found.loc[str(b), "date"].value == b.stat().st_mtime_ns
    fresh = Index.build(videos, place.with_name("fresh"), encoder)
    columns = ["file", "segment", "path", "size", "date", "sha256", "vector", "strip"]
    first, second = (
        i.table.search().select(columns).to_arrow().sort_by("file") for i in (index, fresh)
    )
    assert first.equals(second), "the same as built anew"
    reads.clear()
    Index.build(videos, place, encoder)
    assert reads == []


def test_a_changed_video_leaves_no_segment_behind(videos, place, encoder, long_video):
    first = sorted(videos.iterdir())[0]
    keep = first.read_bytes()
    shutil.copy(long_video, first)
    assert Index.build(videos, place, encoder).table.count_rows() == 3 + 8
    first.write_bytes(keep)
    assert Index.build(videos, place, encoder).table.count_rows() == 4


def test_moved_and_swapped_files_keep_their_rows(videos, place, encoder, reads, monkeypatch):
    monkeypatch.setattr(encoders, "COMMIT", 1)
    broken = videos / "broken.mp4"
    broken.write_text("no video")
    Index.build(videos, place, encoder)
    reads.clear()
    a, b, c, d = sorted(set(videos.iterdir()) - {broken})
    a.rename(videos / "it's\nmoved.mp4")
    shutil.copy(b, videos / "copy.mp4")
    broken.rename(videos / "moved, still broken.mp4")
    for old, new in ((c, "swap.mp4"), (d, c), ("swap.mp4", d)):
        (videos / old).rename(videos / new)
    index = Index.build(videos, place, encoder)
    assert sorted(reads) == ["copy.mp4", "moved, still broken.mp4"]
    fresh = Index.build(videos, place.with_name("fresh"), encoder)
    first, second = (i.table.to_arrow().sort_by("file") for i in (index, fresh))
    assert first.equals(second), "the same as built anew"


def test_two_folders_share_an_index(videos, corpus, place, encoder):
    Index.build(videos, place, encoder)
    index = Index.build(corpus, place, encoder)
    assert len(index.files()) == 16
    for path in videos.iterdir():
        path.unlink()
    assert len(Index.build(corpus, place, encoder).files()) == 16
    assert len(Index.build(videos, place, encoder).files()) == 12


def test_a_file_that_is_moved_over_another_brings_its_rows(videos, place, encoder, reads):
    broken = videos / "broken.mp4"
    broken.write_text("no video")
    Index.build(videos, place, encoder)
    reads.clear()
    a, b, c, d = sorted(set(videos.iterdir()) - {broken})
    a.rename(b)
    c.rename(broken)
    index = Index.build(videos, place, encoder)
    assert reads == []
    assert index.table.count_rows() == 3
    assert paths(index) == sorted([b.name, broken.name, d.name])
    assert index.failures().empty


def test_a_copy_in_another_folder_takes_no_rows_away(videos, place, encoder, reads):
    Index.build(videos, place, encoder)
    other = videos.with_name("other")
    shutil.copytree(videos, other)
    index = Index.build(other, place, encoder)
    assert len(reads) == len(index.files()) == 8
    reads.clear()
    first = sorted(videos.iterdir())[0]
    os.utime(first)  # two files have this content: it is read again
    Index.build(videos, place, encoder)
    assert reads == [first.name]


def test_a_folder_that_is_moved_whole_keeps_its_rows(videos, place, encoder, reads):
    Index.build(videos, place, encoder)
    reads.clear()
    other = videos.rename(videos.with_name("other"))
    index = Index.build(other, place, encoder)
    assert reads == []
    assert sorted(index.files()["path"]) == sorted(map(str, other.iterdir()))
    assert index.table.count_rows() == 4


def test_failures_have_reasons_and_are_tried_again(videos, corpus, place, encoder, reads):
    (videos / "text.mp4").write_text("no video")
    (videos / "empty.mp4").touch()
    write_audio(videos / "sound.mp4")
    failures = Index.build(videos, place, encoder).failures()
    assert [os.path.basename(path) for path in sorted(failures["path"])] == [
        "empty.mp4",
        "sound.mp4",
        "text.mp4",
    ]
    assert set(failures["status"]) == {"failed"}
    assert failures["reason"].str.len().gt(5).all()
    reads.clear()
    assert len(Index.build(videos, place, encoder, retry=False).files()) == 7
    assert reads == []
    shutil.copy(max(corpus.iterdir()), videos / "text.mp4")
    index = Index.build(videos, place, encoder)
    assert sorted(reads) == ["empty.mp4", "sound.mp4", "text.mp4"]
    assert len(index.failures()) == 2


def test_hostile_names_are_indexed_and_found(videos, place, encoder):
    names = [b'it\'s "one"; drop.mp4', b"two\nlines.mp4", "😀 狗.mp4".encode(), b"bytes\xff.mp4"]
    for name, path in zip(names, sorted(videos.iterdir()), strict=True):
        os.rename(path, os.path.join(os.fsencode(videos), name))
    index = Index.build(videos, place, encoder)
    assert index.failures().empty, index.failures().to_string()
    found = index.search("a circle", k=4)
    assert {os.path.basename(row["name"]) for row in found.to_dict("records")} == set(names)
    where = "path like '%it''s \"one\"; drop%'"
    assert len(index.search("a circle", where=where)) == 1
    assert len(Index.build(videos, place, encoder).files()) == 4


def test_no_folder_and_no_videos(tmp_path, place, encoder):
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        Index.build(tmp_path / "nowhere", place, encoder)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match="expected videos, such as"):
        Index.build(tmp_path, place, encoder)
    assert not place.exists()
    with pytest.raises(FileNotFoundError, match="no index at"):
        Index.open(place)


def test_only_broken_files_give_an_index_without_hits(tmp_path, place, encoder):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no")
    index = Index.build(tmp_path / "videos", place, encoder)
    assert len(index.failures()) == 1
    found = index.search("a red circle")
    assert found.empty
    assert not found.attrs["matches"]


def test_an_index_of_another_model_is_refused_and_stays(videos, place, encoder):
    Index.build(videos, place, encoder)
    other = Encoder(backbone="tvrkit-tiny")
    for attempt in (Index.build, lambda _, place, encoder: Index.open(place, encoder)):
        with pytest.raises(ValueError, match=r"is an index of another model: expected {'weights'"):
            attempt(videos, place, other)
    assert len(Index.open(place).search("a circle")) > 0
    index = Index.open(place)
    index.note(made=index.card["made"] | {"format": "0"})
    for attempt in (Index.open, lambda place: Index.build(videos, place, encoder)):
        with pytest.raises(ValueError, match="is of another version of the kit"):
            attempt(place)


def test_a_table_without_a_card_is_of_another_version(tmp_path):
    lancedb.connect(tmp_path).create_table("segments", [{"vector": [1.0, 2.0]}])
    with pytest.raises(ValueError, match="is of another version of the kit"):
        Index.open(tmp_path)


def test_a_build_that_was_killed_before_its_table_was_there_goes_on(videos, place, encoder):
    (place / "segments.lance" / "data").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no index at"):
        Index.open(place)
    assert len(Index.build(videos, place, encoder).files()) == 4


def test_a_store_that_does_not_answer_is_one_line(monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("Invalid input, Failed to connect: retries: 3, /root/io.rs:9:1\n  at x")

    monkeypatch.setattr(lancedb, "connect", refuse)
    with pytest.raises(OSError, match=r"s3://a/b cannot be reached: .*retries: 3$"):
        Index.open("s3://a/b")


def test_a_segment_has_a_length(videos, place, encoder):
    with pytest.raises(ValueError, match="seconds of a segment: expected more than 0, got 0"):
        Index.build(videos, place, encoder, seconds=0)
    assert not place.exists()


def test_the_model_is_loaded_when_a_search_needs_it(built):
    assert Index.open(built).encoder.model == EMBEDDED


INTERRUPTED = """
import os, signal, sys
from lancedb.table import LanceTable
from tvrkit.search import encoder
from tvrkit.search.encoder import Encoder
from tvrkit.search.index import Index
encoder.COMMIT = 2
add = LanceTable.add
def add_and_die(self, *arguments, **more):
    add(self, *arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)
LanceTable.add = add_and_die
Index.build(sys.argv[1], sys.argv[2], Encoder(None, "tvrkit-tiny", "tvrkit"))
"""


def test_a_killed_build_goes_on(corpus, place, built, encoder, reads):
    command = [sys.executable, "-c", INTERRUPTED, str(corpus), str(place)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    there = len(Index.open(place).files())
    assert 0 < there < 12, "killed in the middle"
    index = Index.build(corpus, place, encoder)
    assert len(reads) == 12 - there
    columns = ["file", "segment", "path", "sha256", "vector"]
    tables = [
        i.table.search().select(columns).to_arrow().sort_by("file")
        for i in (index, Index.open(built))
    ]
    assert tables[0].equals(tables[1])


def test_a_long_build_is_packed_on_its_way(corpus, place, encoder, monkeypatch):
    monkeypatch.setattr(encoders, "COMMIT", 1)
    monkeypatch.setattr(indexes, "PACK", 5)
    pieces, add = [], lancedb.table.LanceTable.add

    def spy(self, *arguments, **more):
        pieces.append(self.stats()["fragment_stats"]["num_fragments"])
        return add(self, *arguments, **more)

    monkeypatch.setattr(lancedb.table.LanceTable, "add", spy)
    index = Index.build(corpus, place, encoder)
    assert len(pieces) == len(index.files()) == 12
    assert max(pieces) <= 5


def test_two_builders_at_once(videos, place, encoder):
    Index.build(videos, place, encoder)
    with (
        indexes.only_builder(str(place)),
        pytest.raises(OSError, match="another process is building"),
    ):
        Index.build(videos, place, encoder)
    Index.build(videos, place, encoder)


def test_a_full_disk(corpus, place, encoder, monkeypatch):
    add, calls = lancedb.table.LanceTable.add, []

    def full(self, *arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)")
        return add(self, *arguments, **more)

    monkeypatch.setattr(encoders, "COMMIT", 4)
    monkeypatch.setattr(lancedb.table.LanceTable, "add", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space left"):
        Index.build(corpus, place, encoder)
    assert len(Index.open(place, encoder).files()) == 4
    monkeypatch.setattr(lancedb.table.LanceTable, "add", add)
    assert len(Index.build(corpus, place, encoder).files()) == 12


def test_a_failing_encoder_ends_the_workers(corpus, place, encoder, monkeypatch):
    pools = []

    class Watched(DecodePool):
        def __enter__(self):
            pools.append(self)
            return super().__enter__()

    def broken(pictures):
        if len(pictures) > 1:
            raise RuntimeError("broken")
        return Encoder.videos(encoder, pictures)

    Index.build(corpus, place, encoder)
    monkeypatch.setattr(encoders, "DecodePool", Watched)
    monkeypatch.setattr(encoder, "videos", broken)
    with pytest.raises(RuntimeError, match="broken"):
        Index.build(corpus, place.with_name("other"), encoder)
    assert all(w.process.poll() is not None for w in pools[0].held.values())


def test_many_vectors_get_an_approximate_index(videos, place, encoder, monkeypatch):
    made = []
    monkeypatch.setattr(indexes, "APPROXIMATE", 4)
    monkeypatch.setattr(
        lancedb.table.LanceTable, "create_index", lambda _, *args, **more: made.append((args, more))
    )
    Index.build(videos, place, encoder)
    kind = IvfSq(distance_type="cosine", num_partitions=1)
    assert made == [(("vector",), {"config": kind})]
