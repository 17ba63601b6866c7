"""Videos read by the processes of a launch together."""

import pytest
from typer.testing import CliRunner

from tests.data.video_files import write_audio, write_video
from tests.training.two_processes import launch
from tvrkit import cli
from tvrkit.data import decoders, shared_decoding
from tvrkit.data.decoders import DecodePool
from tvrkit.data.prepare import extract_folder
from tvrkit.data.store import FrameStore
from tvrkit.training import distributed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """More than two processes read in a turn."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2 * shared_decoding.SHARE + 3):
        write_video(folder / f"video{number}.mp4", count=4 + number)
    write_audio(folder / "audio.mp4")
    return folder


def test_two_processes_make_the_store_of_one(videos, tmp_path):
    command = ["-m", "--", "tvrkit", "data", "extract", videos, "--frames", 4, "--workers", 1]
    ended = launch(*command, "--out", tmp_path / "two", home=tmp_path, limit=100)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "19 of 20 files in" in ended.stdout
    rows = extract_folder(videos, tmp_path / "one", frames=4, workers=1)
    one, two = (FrameStore(tmp_path / name / "frames.lmdb") for name in ("one", "two"))
    assert two.rows() == one.rows()
    assert two.verify() == []
    told = [(tmp_path / name / "videos.jsonl").read_text() for name in ("one", "two")]
    assert told[0] == told[1]
    assert set(rows["status"]) == {"ok", "failed"}


def test_what_is_wrong_on_the_main_process_lets_the_others_go(tmp_path, monkeypatch):
    """Which would wait for it otherwise: they are told to end whatever the command has raised."""
    told = []
    monkeypatch.setattr(shared_decoding.processes, "count", lambda: 2)
    monkeypatch.setattr(shared_decoding.processes, "from_main", lambda make: told.append(make()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "start", lambda device: device)
    command = ["data", "extract", str(tmp_path / "none"), "--out", str(tmp_path)]
    ended = CliRunner().invoke(cli.app, command)
    assert "no folder of videos at" in str(ended.exception)
    assert told == [None]
    assert decoders.new_pool is DecodePool
