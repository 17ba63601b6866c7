"""What `test_distributed` launches: every method's gradient of one batch, and a run of one epoch;
then a process is killed. Without RUN, one raises an error and that is all.

Usage: torchrun ... two_processes.py FOLDER [RUN], or `main(folder, run)` in one process.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from tests.training.toy import Toy, trainer
from tvrkit.data import loader, processes
from tvrkit.training import distributed, runs
from tvrkit.training.large_batch import backward, backward_in_chunks

# dropout is off: it draws by process
PRETRAINING = ["method.queue_size=20", "method.frame_queue_size=40", "method.projector_width=16"]
RECIPES = {
    "clip4clip_shapes": [],
    "dmae_shapes": ["method.max_frames=3"],
    "dmae_shapes_released": ["method.max_frames=3", "method.fidelity=released"],
    "glscl_shapes": ["method.dropout=0.0"],
    "hmmc_shapes": [],
    "hmmc_pretrain_shapes": [*PRETRAINING, "data.augmentation=hmmc"],
}
LIMIT = 240  # seconds for all methods on two processes
SMALL = ["train.epochs=1", "data.max_frames=3", "train.batch_size=16", "eval.batch_size=9"]
CHUNKED = ("glscl_shapes", "hmmc_pretrain_shapes")  # also in chunks of 3 rows


def launch(*command, home, limit=LIMIT, **variables):
    """Two gloo processes on this machine, ended with all they started when the time is up."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += ["--standalone", "--local_addr=127.0.0.1"]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "TVRKIT_HOME": str(home),
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [*torchrun, *map(str, command)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=limit,
    )


def gradient(recipe, overrides, chunk):
    """Of the first batch, after the gradients of all processes are averaged."""
    config = runs.load_recipe(recipe, overrides, "smoke")
    torch.manual_seed(0)
    method = runs.build_method(config)
    split = runs.prepared(config).split("train")
    batch = next(iter(loader.train_loader(split, config, method.backbone, seed=0)))
    if chunk:
        parts, _ = backward_in_chunks(method, batch, chunk)
    else:
        parts, _ = backward(method, batch)
    distributed.average_gradients(method.parameters())
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return gradients | {f"buffer {name}": value for name, value in method.named_buffers()} | parts


def main(folder: Path, run: str):
    distributed.start(torch.device("cpu"))
    for name, changes in RECIPES.items():
        recipe = name.removesuffix("_released")
        overrides = [*SMALL, *changes]
        for chunk in (None, 3) if name in CHUNKED else (None,):
            found = gradient(recipe, overrides, chunk)
            if processes.rank() == 0:
                torch.save(found, folder / f"{name} {chunk}.pt")
        # Adam makes a whole step of a gradient that is all but zero, whichever sign rounding gives
        # it: GLSCL, whose decoder has ReLUs, ends 1e-3 from itself where its start is moved by a
        # last digit of float32.
        torch.set_default_dtype(torch.float64 if name == "glscl_shapes" else torch.float32)
        runs.ensure(recipe, profile="smoke", overrides=overrides, run=f"{run}/{name}")
        torch.set_default_dtype(torch.float32)


def die(folder: Path, how):
    """Train; the second process ends in the midst of an epoch."""

    class Dying(Toy):
        def loss(self, text, video, batch):
            if processes.rank() == 1 and len(batch) == 6:
                how()
            return super().loss(text, video, batch)

    trainer(kind=Dying).fit(folder, lambda state: {})


def fail():
    raise ZeroDivisionError


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not sys.argv[2:]:
        distributed.start(torch.device("cpu"))
        die(folder, fail)
    main(folder, sys.argv[2])
    (folder / f"{processes.rank()} is done").touch()
    die(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))
