"""Seeds, and the run card that says how a number came to be."""

import os
import platform
import random
import re
import resource
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from tvrkit import files

PACKAGES = (
    "tvrkit",
    "torch",
    "torchvision",
    "open_clip_torch",
    "accelerate",
    "decord",
    "av",
    "spacy",
    "numpy",
)


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
        raise ValueError(
            f"device {device!r} asked for, but torch {torch.__version__} sees no GPU: use device='cpu'"
        )
    chosen = torch.device(device)
    if chosen.index is not None:
        torch.cuda.set_device(chosen)  # accelerate takes the current GPU
    return chosen


def run_card(seed: int, device: torch.device) -> dict:
    """What outside the recipe decides a number: code, versions and machine."""
    return {
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "seed": seed,
    }


def git_commit() -> str | None:
    """Commit of the checkout, with `-dirty` where tracked files differ from it; None outside a
    checkout."""
    command = [
        "git",
        "-C",
        str(files.PACKAGE),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """Model name of the processor and the number of cores this process may use."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            model,
        )
    except OSError:
        pass  # not Linux: the machine type is all there is
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held at once so far: of the GPU if `device` is one, else of this process, in MB
    (10^6 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
