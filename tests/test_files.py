"""Paths, and files written whole or not at all."""

import hashlib
import json

import pytest
import torch

from tvrkit import files


def test_home_is_the_folder_that_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    assert files.home() == tmp_path.resolve()
    assert files.data("mine") == tmp_path.resolve() / "data" / "mine"
    assert files.run("quick/dmae/seed0") == tmp_path.resolve() / "reports" / "quick/dmae/seed0"


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/etc", ".hidden", "a//b", "a b"])
def test_a_run_cannot_lead_out_of_reports(name):
    with pytest.raises(ValueError, match="run name"):
        files.run(name)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "metrics.json"
    files.write_json(target, {"R@1": 34.4})
    with pytest.raises(TypeError):
        files.write_json(target, {"R@1": object()})
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(target, {"R@1": 0.0})
    assert json.loads(target.read_text()) == {"R@1": 34.4}


def test_a_refusal_says_where_what_was_expected_and_what_came():
    files.expect(True, "k", "at least 1", 1)
    with pytest.raises(ValueError, match=r"^k: expected at least 1, got 0$"):
        files.expect(0, "k", "at least 1", 0)


def test_what_a_terminal_would_obey_is_written_out():
    text = "a\x1b[2J\x07\x9b\u202e b\tc\n猫\udcff"
    assert files.printable(text) == r"a\x1b[2J\x07\x9b\u202e b" + "\tc\n猫" + r"\udcff"


def test_a_name_is_one_line():
    told = files.on_one_line("a\n\tb\x1b[31m 'c' \u2028猫 😀\udcff")
    assert told == r"a\n\tb\x1b[31m 'c' \u2028猫 😀\udcff"


def test_sha256_is_that_of_the_bytes(tmp_path):
    files.write_text(tmp_path / "a", "größer")
    assert files.sha256(tmp_path / "a") == hashlib.sha256("größer".encode()).hexdigest()


def test_a_file_of_weights_has_the_rights_of_any_other(tmp_path):
    from safetensors.torch import save_file

    with files.replacing(tmp_path / "weights.safetensors") as temporary:
        save_file({"weight": torch.zeros(2)}, temporary)
    (tmp_path / "other").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
