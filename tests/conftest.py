"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest
import torch

import tvrkit.models  # noqa: F401  declares the operators that torchvision's wheel may lack, before anything imports it

torch.set_num_threads(1)  # two test processes share two cores
os.environ.setdefault("TQDM_DISABLE", "1")

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _beside(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable, BESIDE / name))
    if not folder.is_dir():
        pytest.skip(f"{name} is not at hand: set {variable} to its folder")
    return folder


@pytest.fixture
def realdata() -> Path:
    """Folder of real annotations and clips (TVRKIT_REALDATA, or ../shared/realdata)."""
    return _beside("realdata", "TVRKIT_REALDATA")


@pytest.fixture
def golden() -> Path:
    """Folder of the full oracle files (TVRKIT_GOLDEN, or ../shared/golden)."""
    return _beside("golden", "TVRKIT_GOLDEN")
