"""Seeds, and the run card that says how a number came to be, and of which files."""

import contextlib
import os
import platform
import random
import re
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Len

from tvrkit import files
from tvrkit.data import records
from tvrkit.models import checkpoints

PACKAGES = ["tvrkit", "torchvision", "open_clip_torch", "accelerate"]
PACKAGES += ["decord", "av", "spacy", "numpy"]
CHECKPOINT = "checkpoint.safetensors"
SCORES = ("metrics.json", "ranks.npz")  # what tables are made from
TABLES = ("history.csv", "curve.csv", "mined.csv.gz")
KEPT = ("train.log", "similarity.npz")  # not given to others
ARTEFACTS = ("config.yaml", *TABLES, *SCORES, "factors.csv.gz", *KEPT, CHECKPOINT)
BOUNDS = ["mean", "low", "high"]  # of a number that a notebook adds
OLD_FACTORS = "factors.csv"  # of runs that were made before they were compressed
GIVEN = {*ARTEFACTS, OLD_FACTORS, "run.json", "README.md"} - {*KEPT}


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write run.json: the card, `artefacts` (the SHA-256 of each file of the run that is there, of
    a checkpoint that of its tensors) and `sha256`, of everything else in it."""
    there = (name for name in ARTEFACTS if (folder / name).exists())
    card = card | {"artefacts": {name: sha256(folder / name) for name in there}}
    files.write_json(folder / "run.json", files.sealed(card))


def read_card(folder: Path) -> dict[str, Any]:
    """What `write_card` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, was changed, or is of tvrkit 0.1, which did not hash its files.
    """
    card = records.read_json(folder / "run.json", dict[str, Any])
    if card != files.sealed(card):
        raise ValueError("run.json: not as it was written: its own SHA-256 differs, or is absent")
    return card


def diagnostics(folder: Path, numbers: dict[str, dict]) -> dict:
    """What is written of the numbers that a notebook adds to a finished run: also the SHA-256 of
    its run.json and, as that has, of all of it."""
    return files.sealed({"run": files.sha256(folder / "run.json"), "numbers": numbers})


def read_diagnostics(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a file of `diagnostics`: title -> (3,) float `BOUNDS`; NaN for unknown.

    Raises:
        ValueError: it was changed since, is another run's, or holds anything else.
    """
    saved = files.read_json(path)
    numbers = saved.get("numbers", {})
    if saved != diagnostics(path.parent, numbers):
        raise ValueError(f"{path.name}: not as it was saved beside this run: other hashes, or none")
    bounds = Annotated[dict[Literal["mean", "low", "high"], float | None], Len(3, 3)]
    rows = records.checked(numbers, dict[str, bounds], path.name)
    return {title: np.array([row[name] for name in BOUNDS], float) for title, row in rows.items()}


def sha256(path: Path) -> str:
    """SHA-256 of a file's content: of a checkpoint's tensors, or of all bytes of another file."""
    if path.name != CHECKPOINT:
        return files.sha256(path)
    return checkpoints.digest(checkpoints.read_tensors(path)[0])


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Loaders draw from (seed, epoch, item) and do not depend on this
    state."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def resolve_device(device: str) -> torch.device:
    """The torch device of that name.

    Raises:
        ValueError: another name, or a GPU is asked for and torch sees none.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: expected cpu, cuda or cuda:k")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} asked for, but torch {torch.__version__} sees no GPU")
    chosen = torch.device(device)
    if chosen.index is not None:
        torch.cuda.set_device(chosen)  # whatever does not name a GPU takes the current one
    return chosen


def run_card(seed: int, device: torch.device) -> dict:
    """What outside the recipe decides a number: code, versions and machine."""
    return {
        "git_commit": git_commit(),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "seed": seed,
    }


def versions() -> dict[str, str]:
    """Of Python, of torch (with its build, for CPU or CUDA) and of those of `PACKAGES` that are
    installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed | {"torch": str(torch.__version__)}


def git_commit() -> str | None:
    """Commit of the checkout, with `-dirty` where tracked files differ from it; None outside a
    checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        output = subprocess.check_output(command, cwd=files.PACKAGE, stderr=subprocess.DEVNULL)
        return output.decode().strip()
    return None


def cpu_name() -> str:
    """Model name of the processor and the number of cores this process may use."""
    model = platform.machine()  # all there is where this is not Linux
    with contextlib.suppress(OSError):
        entry = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        model = entry[1].strip() if entry else model
    affinity = hasattr(os, "sched_getaffinity")
    return f"{model}, {len(os.sched_getaffinity(0)) if affinity else os.cpu_count()} cores"


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held at once so far: of the GPU if `device` is one, else of this process, in MB
    (10^6 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
