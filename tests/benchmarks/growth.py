"""How time and memory of an evaluation grow:

    python -m tests.benchmarks.growth 1000 3000 10000

For each method, features of ViT-B/32's size that are there (32 words, 12 frames, width 512), as
many captions as videos, captions in batches of 128. Each is measured in a process of its own:
processor seconds of scoring and of all that is read off the scores (2,000 resamples), and the most
memory that is not a file's, above that of the features. The last column continues the largest two,
by the square of the number at least.
"""

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from tvrkit.evaluation.evaluate import Evaluation, in_a_file
from tvrkit.recipes import load_recipe
from tvrkit.settings import EvalConfig
from tvrkit.training import bench
from tvrkit.training.runs import build_method

METHODS = ("clip4clip", "hmmc", "glscl", "dmae")
BATCH, FAR = 128, 50_000


def anonymous() -> float:
    """Megabytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


@torch.inference_mode()
def measure(name: str, count: int) -> tuple[float, float, float]:
    """Processor seconds of scoring and of the rest, and megabytes."""
    torch.set_num_threads(2)
    config = load_recipe(f"{name}_msrvtt", ["backbone.pretrained=null", "data.max_frames=12"])
    method = build_method(config).eval()
    few = bench.random_batch(method, config, 8, torch.device("cpu"))
    rows = torch.arange(count) % 8
    text, video = method.encode_text(few), method.encode_video(few)[rows]
    most, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most.append(anonymous())

    threading.Thread(target=watch, daemon=True).start()
    began = time.process_time()
    batches = (method.similarity(text[part], video).numpy() for part in rows.split(BATCH))
    scores = in_a_file(batches)
    scored = time.process_time()
    ids = [str(row) for row in range(count)]
    Evaluation.from_similarity(scores, (ids, ids, np.arange(count)), EvalConfig())
    ended = time.process_time()
    done.set()
    return scored - began, ended - scored, max(most) - most[0]


def row(name: str, counts: list[int]) -> str:
    """A line of the table."""
    found = []
    for count in counts:
        command = [sys.executable, "-m", "tests.benchmarks.growth", name, str(count)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.append([float(number) for number in printed.split()])
    cells = [f"{a:.1f} + {b:.1f} s, {mb:.0f} MB" for a, b, mb in found]
    (a, b), near = (sum(each[:2]) for each in found[-2:]), counts[-2:]
    power = math.log(b / a) / math.log(near[1] / near[0])
    hours = b * (FAR / near[1]) ** max(power, 2) / 3600
    return f"| {name} | {' | '.join(cells)} | {power:.1f} | {hours:.2f} h |"


def main(*given: str) -> None:
    """Measure, print."""
    if given[0] in METHODS:
        print(*measure(given[0], int(given[1])))
        return
    counts = [int(count) for count in given]
    print(f"| method | {' | '.join(f'{count:,}' for count in counts)} | power | {FAR:,} |")
    print("|" + "---|" * (len(counts) + 3))
    for name in METHODS:
        print(row(name, counts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
