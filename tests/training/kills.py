"""A training that is killed again and again, beside one that is not:

    python -m tests.training.kills 10

`tvrkit train` on the smoke data, as processes of their own: one runs through, the other is ended by
SIGKILL as soon as its history has a further step, and started again with the same command. Prints
a row per kill, and the SHA-256 of both weights.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

TRAIN = [sys.executable, "-m", "tvrkit", "train", "glscl_shapes"]
SMALL = ["--profile", "smoke", "train.epochs=6", "train.save_every=2"]  # of 3 steps each


def steps(folder: Path) -> int:
    """Rows of the history so far."""
    path = folder / "history.csv"
    return max(0, len(path.read_text(encoding="utf-8").splitlines()) - 1) if path.exists() else 0


def log(folder: Path) -> list[str]:
    """Lines that say where it went on."""
    path = folder / "train.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if "resumed at" in line]


def weights(folder: Path) -> str:
    """SHA-256 over the tensors, by name."""
    found = load_file(folder / "checkpoint.safetensors")
    parts = [found[name].numpy().tobytes() for name in sorted(found)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def main(kills: int) -> None:
    """Train twice, print."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"TVRKIT_HOME": home, "TQDM_DISABLE": "1"}
        quiet = {"env": environment, "stdout": subprocess.DEVNULL}
        straight, killed = (Path(home, f"reports/{run}/glscl_shapes/seed0") for run in "ab")
        subprocess.run([*TRAIN, *SMALL, "--run", "a"], check=True, **quiet)
        print("| kill | steps in the history | goes on at |\n|---|---|---|")
        for kill in range(kills):
            before, seen = steps(killed), len(log(killed))
            process = subprocess.Popen([*TRAIN, *SMALL, "--run", "b"], **quiet)
            while steps(killed) <= before and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.wait()
            resumed = log(killed)[seen:]
            where = resumed[0].split("resumed at ")[1] if resumed else "the start"
            print(f"| {kill + 1} | {steps(killed)} | {where} |", flush=True)
        subprocess.run([*TRAIN, *SMALL, "--run", "b"], check=True, **quiet)
        print(f"\nnever killed  {weights(straight)}\nkilled        {weights(killed)}")
        print("steps", steps(straight), steps(killed))


if __name__ == "__main__":
    main(int(sys.argv[1]))
