"""What is here and works, and what is said where it does not."""

import torch

from tvrkit import files
from tvrkit.data import decoders
from tvrkit.training import doctor


def test_every_part_is_heard(tmp_path, monkeypatch):
    monkeypatch.setenv("TVRKIT_HOME", str(tmp_path))
    broken = tmp_path / "data/mine"
    broken.mkdir(parents=True)
    files.write_json(broken / "card.json", {})
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    found = dict(doctor.examine(seconds=0.1))
    assert found["devices"].startswith("cpu: ")
    assert found["devices"].endswith("; no GPU that torch can see") or torch.cuda.is_available()
    assert "torch 2." in found["versions"]
    assert found["weights"] == "tvrkit-tiny reads"
    assert found["tagger en"].startswith("en_core_web_sm")
    assert "clips a second" in found["speed on cpu"]
    assert found["decoders"].startswith("FAILS: ")
    assert found["data mine"].startswith("FAILS: ")
