"""The command line: every expected error is one line on stderr and exit 1; Ctrl-C is 130 and says
how to go on."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.data.video_files import write_video
from tests.fakes import finished_run
from tvrkit import cli
from tvrkit.data.extract import NO_FILE
from tvrkit.data.manifest import Manifest
from tvrkit.training import runs

pytestmark = pytest.mark.slow


@pytest.fixture
def tvrkit(monkeypatch, tmp_path, capsys):
    """Run a command line in an empty home; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tvrkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "dmae_shape"], "error: unknown recipe 'dmae_shape': expected one of"),
        (
            ["train", "dmae_shapes", "train.epoch=3"],
            "error: train.epoch: Unexpected keyword argument",
        ),
        (
            ["train", "dmae_shapes", "method.name=x"],
            "error: unknown method 'x': expected one of clip4clip",
        ),
        (["train", "dmae_shapes", "backbone.name=ViT-B-33"], "error: unknown backbone 'ViT-B-33'"),
        (["train", "dmae_msrvtt"], "error: no prepared data set at"),
        (
            ["reproduce", "--profile", "fast"],
            "error: unknown profile 'fast': expected one of activitynet, chvtt",
        ),
        (["data", "check", "msrvt", "."], "error: unknown data set 'msrvt': expected one of"),
        (["data", "check", "msrvtt/1k-B", "."], "error: unknown protocol 'msrvtt/1k-B'"),
        (["data", "check", "msrvtt", "nowhere"], "error: "),
        (
            ["data", "prepare", "msvd"],
            "error: data prepare msvd: expected the folder of its annotations and --videos",
        ),
        (["data", "prepare", "shapes-huge"], "error: unknown preset 'huge': expected one of"),
        (
            ["data", "prepare", "shapes", "--split", "test", "--videos", ".", "--language", "en"],
            "error: data prepare shapes-quick: takes no videos, language, split",
        ),
        (
            ["data", "prepare", "own", "t.csv", "--videos", ".", "--split", "test"],
            "error: data prepare own: takes no split",
        ),
        (
            ["data", "prepare", "own", "t.csv", "--videos", ".", "--allow-partial"],
            "error: data prepare own: takes no allow-partial",
        ),
        (["data", "extract", "nowhere", "--out", "store"], "error: no folder of videos at nowhere"),
        (["data", "verify", "nowhere"], "error: no frame store at nowhere"),
        (
            ["convert", "glscl", "nothing.pt", "--out", "x.safetensors"],
            "error: nothing.pt: no such checkpoint",
        ),
    ],
)
def test_an_expected_error_is_one_line(tvrkit, arguments, message):
    if arguments[:2] == ["train", "dmae_shapes"] and "backbone" in arguments[-1]:
        arguments = [*arguments, "--profile", "smoke"]
    code, _, err = tvrkit(*arguments)
    last = err.strip().splitlines()[-1]
    assert code == 1
    assert last.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "clip4clip_shapes", "--profile", "smoke", "--out", "taken"],
        ["data", "extract", "clips", "--out", "taken"],
        ["data", "prepare", "shapes-smoke", "--out", "taken"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_file_where_a_folder_is_to_be_written_is_said_to_be_one(tvrkit, tmp_path, arguments):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", count=4)
    (tmp_path / "taken").write_text("mine")
    code, _, err = tvrkit(*arguments)
    last = err.splitlines()[-1]
    assert (code, last.startswith("error: taken")) == (1, True)
    assert last.endswith(": expected a folder, got a file in its way")
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_interrupt_says_how_to_go_on(tvrkit, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "ensure", interrupted)
    code, _, err = tvrkit("train", "dmae_shapes")
    assert code == 130
    assert (
        err.strip().splitlines()[-1]
        == "interrupted; what is finished is kept: run the same command again to continue"
    )


def test_recipes_and_data_sets_are_listed(tvrkit):
    assert "glscl_msrvtt" in tvrkit("recipes")[1]
    code, out, _ = tvrkit("data", "list")
    assert code == 0
    assert "msrvtt/1k-A" in out


def test_prepare_verify_and_extract_on_real_video_files(tvrkit, tmp_path):
    code, out, _ = tvrkit("data", "prepare", "shapes-smoke")
    assert code == 0
    root = tmp_path / "data" / "shapes-smoke"
    counts = Manifest.open(root).card["counts"]["test"]
    assert f"test: {counts['ok']} of {counts['videos']} videos" in out
    assert tvrkit("data", "verify", root)[0] == 0
    video = Manifest.open(root).videos["video_id"][0]

    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    shutil.copy(root / "videos" / f"{video}.mp4", clips / "deep" / "good.mp4")
    (clips / "broken.mp4").write_bytes(b"no video")
    options = ("--out", tmp_path / "store", "--frames", 4, "--decoder", "pyav")
    code, out, _ = tvrkit("data", "extract", clips, *options)
    rows = [
        json.loads(line) for line in (tmp_path / "store" / "videos.jsonl").read_text().splitlines()
    ]
    assert {row["file"]: row["status"] for row in rows} == {
        "broken.mp4": "failed",
        "deep/good.mp4": "ok",
    }
    assert next(row["reason"] for row in rows if row["status"] == "failed")
    assert {row["decoder"] for row in rows if row["status"] == "ok"} == {"pyav"}
    assert "1 of 2 files" in out


def test_shapes_alone_are_of_the_preset_that_their_folder_names(tvrkit, tmp_path):
    assert tvrkit("data", "prepare", "shapes", "--out", tmp_path / "shapes-smoke")[0] == 0
    assert Manifest.open(tmp_path / "shapes-smoke").card["made_from"]["preset"] == "smoke"


def test_shapes_of_a_preset_go_into_any_folder(tvrkit, tmp_path):
    code, out, _ = tvrkit("data", "prepare", "shapes-smoke", "--out", tmp_path / "elsewhere")
    assert code == 0
    assert f"recipes look for data sets in {tmp_path / 'data'}" in out
    assert Manifest.open(tmp_path / "elsewhere").card["made_from"]["preset"] == "smoke"


def test_a_folder_of_any_name_is_read_from_and_written_to(tvrkit, tmp_path):
    """Bytes that are no text, a line's end, a backslash: all is printed as text, an error in one
    line."""
    odd = tmp_path / os.fsdecode(b"\xff\n\\\x1b[2J")
    odd.mkdir()
    write_video(tmp_path / "a.mp4", count=4).rename(odd / "a.mp4")
    code, out, err = tvrkit("data", "extract", odd, "--out", odd / ".out", "--frames", 2)
    assert (code, "1 of 1 files in" in out, "\x1b" in out + err) == (0, True, False)
    code, out, _ = tvrkit("data", "verify", odd / ".out")
    assert (code, "1 videos, every frame reads" in out) == (0, True)
    code, _, err = tvrkit("data", "verify", odd / ".nowhere")
    assert (code, err.count("\n"), err.startswith("error: no frame store at")) == (1, 1, True)


def test_the_real_clips_are_all_extracted(tvrkit, tmp_path, realdata):
    code, *_ = tvrkit(
        "data", "extract", realdata / "videos", "--out", tmp_path / "store", "--frames", 2
    )
    rows = [
        json.loads(line) for line in (tmp_path / "store" / "videos.jsonl").read_text().splitlines()
    ]
    failed = [row["file"] for row in rows if row["status"] != "ok"]
    assert code == 0
    assert failed == ["videos.csv"]  # every file gets a row, the table beside the clips too
    assert len(rows) == 19


def test_help_opens_with_what_it_is_and_version_is_told(tvrkit):
    assert "re-run, compare and look into" in tvrkit("--help")[1]
    assert tvrkit("--version")[1].startswith("tvrkit ")


def test_a_dry_run_writes_nothing(tvrkit, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = tvrkit("train", "dmae_shapes", "train.epochs=7", "--dry-run")
    assert code == 0
    assert "epochs: 7" in out
    assert "01_data_preparation" in tvrkit("reproduce", "--dry-run")[1]
    assert "dmae_components  0 of" in tvrkit("sweep", "all", "--dry-run")[1]
    assert sorted(tmp_path.rglob("*")) == before


def test_report_verify_names_what_is_damaged_and_exits_1(tvrkit):
    code, _, err = tvrkit("report", "verify", ".")
    assert (code, err) == (1, "error: .: no finished run in it\n")
    whole, damaged = finished_run("alpha"), finished_run("beta")
    code, out, _ = tvrkit("report", "verify", "reports")
    assert (code, out) == (0, "reports: 2 runs, every file as it was written\n")
    (damaged.folder / "metrics.json").write_text("{}")
    (whole.folder / "similarity.npz").unlink()  # git does not keep it
    code, _, err = tvrkit("report", "verify", "reports")
    assert code == 1
    assert err.startswith("error: reports/mine/beta/seed0: metrics.json: not as it was")
    assert err.count("\n") == 1
    with pytest.warns(UserWarning, match="seed0 is damaged and left out: metrics.json"):
        code, out, _ = tvrkit("report")
    assert code == 0
    assert "reports/index.html" in out
    assert "\x1b" not in out + err


def test_ids_of_strangers_do_not_move_the_cursor(capsys):
    """An id may hold C1 control characters and marks that turn text round: a terminal gets none."""
    row = {"split": "test", "video_id": "a\x9b2Jb\u202e", "status": "failed", "reason": NO_FILE}
    videos = pd.DataFrame([row | {"frames": 0, "requested": 4}])
    cli.print_coverage(Manifest(Path("mine"), videos[:0], videos, {}))
    assert r"missing 1: a\x9b2Jb\u202e" in capsys.readouterr().out
