"""The run card: seeds, devices, versions, commit and machine."""

import random
import subprocess

import numpy as np
import pytest
import torch

from tvrkit import files
from tvrkit.training import card

CPU = torch.device("cpu")


def test_one_seed_draws_the_same_everywhere():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    card.seed_everything(3)
    first = draw()
    card.seed_everything(3)
    assert draw() == first
    card.seed_everything(4)
    assert not set(draw()) & set(first)


def test_devices_by_name(monkeypatch):
    assert card.resolve_device("cpu") == CPU
    with pytest.raises(ValueError, match="unknown device 'gpu': expected cpu, cuda or cuda:k"):
        card.resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device 'cuda:1' asked for, but torch .* sees no GPU"):
        card.resolve_device("cuda:1")


def test_the_card_names_code_and_machine():
    made = card.run_card(5, CPU)
    assert set(made) == {"git_commit", "versions", "device", "torch_threads", "seed"}
    assert (made["seed"], made["torch_threads"]) == (5, torch.get_num_threads())
    assert made["versions"]["torch"] == torch.__version__
    assert made["device"].endswith("cores")


def test_a_changed_file_makes_the_commit_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path)
    assert card.git_commit() is None

    def git(*arguments):
        name = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    commit = card.git_commit()
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert card.git_commit() == f"{commit}-dirty"


def test_memory_is_in_megabytes():
    assert 50 < card.peak_memory_mb(CPU) < 200_000
