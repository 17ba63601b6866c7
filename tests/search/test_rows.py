"""From files to rows; features keep what they are, but for half precision; engines lose nothing."""

import contextlib
import pickle

import pyarrow as pa
import pytest
import torch

from tests.search.conftest import EMBEDDED, jpegs
from tvrkit.data.batch import VideoFeatures
from tvrkit.data.decoders import VideoInfo
from tvrkit.search import rows
from tvrkit.search.clips import Clip, File, Reader, Segment, find


@pytest.fixture
def clips(corpus):
    frames = jpegs(sorted(corpus.iterdir())[0], 8)
    info = VideoInfo(8, 8.0, 2.0, 64, 64, "pyav", "")
    segments = [Segment(0.0, 1.0, frames), Segment(1.0, 2.0, frames[:3])]
    broken = Clip(File("/b.mp4", 3, 5), "", VideoInfo(reason="no frames"), [])
    return [Clip(File("/a.mp4", 10, 1_700_000_000 * 10**9), "f" * 64, info, segments), broken]


def test_a_row_per_segment_and_one_for_a_failure(encoder, clips):
    table = rows.to_table(encoder, clips)
    facts = table.select(["path", "segment", "start", "end", "status", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in facts] == [
        ("/a.mp4", 0, 0.0, 1.0, "ok", ""),
        ("/a.mp4", 1, 1.0, 2.0, "ok", ""),
        ("/b.mp4", 0, None, None, "failed", "no frames"),
    ]
    assert table["vector"].null_count == table["features"].null_count == 1
    assert rows.to_table(encoder, clips[1:]).equals(table.slice(2))


def test_features_come_back(encoder, clips):
    made = encoder.videos([segment.frames for segment in clips[0].segments])
    back = rows.unpack(rows.to_table(encoder, clips)["features"].to_pylist()[:2])
    assert torch.equal(back.mask, made.mask)
    torch.testing.assert_close(back.frames, made.frames, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back.video, made.video, rtol=1e-3, atol=1e-3)


def test_every_kind_of_tensor_comes_back():
    extras = {"near": torch.tensor([[2, 1], [0, 1]]), "gain": torch.rand(2, 2)}
    made = VideoFeatures(None, torch.rand(2, 2, 4), torch.tensor([[True, False]] * 2), extras)
    back = rows.unpack([rows.pack(made[:1]), rows.pack(made[1:])])
    assert back.video is None
    assert (back.mask.dtype, back.frames.dtype) == (torch.bool, torch.float32)
    assert torch.equal(back.extras["near"], extras["near"])
    torch.testing.assert_close(back.extras["gain"], extras["gain"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("commit", [1, 5, 100])
def test_local_gives_each_file_once_and_whole(corpus, encoder, commit, monkeypatch):
    monkeypatch.setattr(rows, "COMMIT", commit)
    found = find(corpus)
    tables = list(rows.local(found, encoder, 10.0, 2))
    names = [name for table in tables for name in table["path"].to_pylist()]
    assert names == [file.path for file in found]
    assert len(tables) == -(-12 // commit)


def test_workers_of_ray_make_the_rows_of_the_local_engine(corpus, encoder):
    found = find(corpus)[:3]
    read, encode = Reader(encoder.frames, 10.0), rows._Encode(*EMBEDDED, "cpu")
    with read.pool:
        clips = [read({"file": pickle.dumps(file)})["clip"] for file in found]
    (table,) = encode({"clip": clips})["table"]
    assert pickle.loads(table).equals(next(rows.local(found, encoder, 10.0, 2)))


def _running(psutil, name: str) -> list:
    """Processes below this one whose command line has the name; one may end while it is asked."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if name in "".join(process.cmdline()) else []
    return found


@pytest.mark.slow
def test_ray_gives_the_same_table_though_a_worker_is_killed(corpus, encoder, monkeypatch):
    for name in ("raylet_start_wait_time_s", "agent_register_timeout_ms"):  # a busy machine
        monkeypatch.setenv(f"RAY_{name}", "300000" if name.endswith("ms") else "300")
    ray = pytest.importorskip("ray", reason="needs the extra `scale`")
    import psutil

    monkeypatch.setattr(rows, "COMMIT", 2)
    try:
        ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:
        pytest.skip(f"Ray does not start on this machine: {error}")
    found, tables, killed = find(corpus), [], []
    try:
        for table in rows.on_ray(found, encoder, 10.0, 2):
            tables.append(table)
            if not killed:
                killed = _running(psutil, "Encode")[:1]
                killed[0].kill()
    finally:
        ray.shutdown()
    assert killed
    columns = ["file", "segment", "path", "sha256", "vector", "features", "strip"]
    expected = pa.concat_tables(rows.local(found, encoder, 10.0, 2)).select(columns)
    made = pa.concat_tables(tables).select(columns)
    assert made.sort_by("path").equals(expected.sort_by("path"))
