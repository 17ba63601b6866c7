"""What a training step costs: measured time, memory and share of the device's peak; and what a
recipe needs before it starts."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from tvrkit import files
from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.method import Method
from tvrkit.recipes import load_recipe
from tvrkit.settings import Config
from tvrkit.training import optim
from tvrkit.training.card import peak_memory_mb, resolve_device, run_card
from tvrkit.training.large_batch import gradient
from tvrkit.training.runs import build_method

METHODS = ("clip4clip_msrvtt", "dmae_msrvtt", "glscl_msrvtt", "hmmc_msrvtt")
GPU = ["train.batch_size=128", "data.max_frames=12", "train.precision=bf16"]  # the step measured
STEPS, PRODUCT = 10, 8192
SHOWN = 8  # operators that take the most time


def random_batch(method: Method, config: Config, rows: int, device: torch.device) -> TextVideoBatch:
    """Rows as the recipe's loader makes them, of random words and pixels."""
    data, backbone, every = config.data, method.backbone, torch.arange(rows, device=device)
    words = min(data.max_words, backbone.context_length)
    tokens = torch.randint(1, 400, (rows, words), device=device)
    size = (rows, data.max_frames, 3, backbone.image_size, backbone.image_size)
    frames = torch.randint(256, size, dtype=torch.uint8, device=device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    shown = torch.ones(size[:2], dtype=torch.bool, device=device)
    return TextVideoBatch(tokens, mask, mask.long(), frames, shown, every, every, seed=every)


def product_rate(device: torch.device) -> float:
    """FLOP a second of a square bf16 matrix product, the peak that a step is held against."""
    factors = torch.randn(2, PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16)
    return 2 * PRODUCT**3 / _seconds(lambda: factors[0] @ factors[1])


def _seconds(call, least: float = 0.0) -> float:
    """Of one call, the mean of `STEPS` after a warm-up, or of `least` seconds of them; a GPU is
    waited for."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return (timer.blocked_autorange(min_run_time=least) if least else timer.timeit(STEPS)).mean


def training_step(config: Config, device: torch.device) -> Callable[[], None]:
    """What takes a training step of a recipe on random rows."""
    torch.manual_seed(0)
    method = build_method(config).to(device).train()
    train, optimizer = config.train, optim.build_optimizer(method, config.train, 1000)[0]
    batch = random_batch(method, config, train.batch_size, device)

    def step() -> None:
        optimizer.zero_grad()
        method.before_step()
        gradient(method, batch, train)
        optimizer.step()

    return step


def clips_per_second(config: Config, device: torch.device, seconds: float) -> float:
    """Of the training step, measured for so long."""
    return config.train.batch_size / _seconds(training_step(config, device), seconds)


def measure(config: Config, device: torch.device, peak: float) -> dict[str, Any]:
    """A training step of a recipe on random rows: clips a second, memory, share of `peak` (FLOP a
    second), and the operators that take the most time."""
    step = training_step(config, device)
    seconds = _seconds(step)
    with FlopCounterMode(display=False) as counter, profile() as profiled:
        step()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    spent = {row.key: getattr(row, kind) for row in profiled.key_averages()}
    most, total = sorted(spent, key=spent.__getitem__, reverse=True), sum(spent.values())
    return {
        "clips_per_second": config.train.batch_size / seconds,
        "step_ms": 1000 * seconds,
        "share_of_peak": counter.get_total_flops() / seconds / peak,
        "memory_gb": peak_memory_mb(device) / 1e3,
        "time_in": {name: spent[name] / total for name in most[:SHOWN]},
    }


def report(out: Path, device: str, recipes=METHODS, overrides=GPU) -> dict[str, Any]:
    """Measure a step of each recipe, ViT-B/32 on batches of 128 x 12 frames in bf16 where nothing
    else is asked, and write it as JSON."""
    where = resolve_device(device)
    peak = product_rate(where)
    measured: dict[str, Any] = {**run_card(0, where), "product_tflops": peak / 1e12, "steps": {}}
    for name in recipes:
        config = load_recipe(name, ["backbone.pretrained=null", *overrides])
        measured["steps"][name] = measure(config, where, peak)
    files.write_json(out, measured)
    return measured


def needs(config: Config) -> dict[str, float]:
    """Memory of a recipe's training step on one process, in GB, before anything is read.

    Parameters with gradients and both moments are counted in float32; what both encoders keep for
    the backward pass is measured on two and on four rows, whose videos hold no numbers, and grows
    with the rows that a process encodes at a time. Left out: the loss, the workspace of the
    kernels, and what `train.recompute` saves; of a recipe that trains nothing, all but the weights.
    """
    plain = replace(config.train, recompute=False, compile=False)
    random = replace(config, backbone=replace(config.backbone, pretrained=None), train=plain)
    method = build_method(random).train()
    if not config.train.epochs:
        return {"weights": sum(p.numel() * 4 for p in method.parameters()) / 1e9}
    rows = min(config.train.chunk_size or config.train.batch_size, config.train.batch_size)
    hollow = deepcopy(method).to("meta")  # for the videos: text towers look into their masks
    two, four = (kept_bytes(method, hollow, config, count) for count in (2, 4))
    # measured under autocast: 0.52 to 0.56, as the residuals stay in float32; a GPU's LayerNorm too
    share = 0.6 if config.train.precision == "bf16" else 1.0
    size = sum(p.numel() * (16 if p.requires_grad else 4) for p in method.parameters())
    return {
        "weights, gradients and moments": size / 1e9,
        "activations": share * (two + (rows - 2) * (four - two) / 2) / 1e9,
    }


def kept_bytes(method: Method, hollow: Method, config: Config, rows: int) -> int:
    """Bytes that both encoders, the second that of `hollow`, keep for the backward pass besides
    their weights."""
    batch, kept = random_batch(method, config, rows, torch.device("cpu")), dict[int, int]()
    every, there = [*method.parameters(), *hollow.parameters()], next(hollow.parameters()).device
    owned = {p.untyped_storage()._cdata for p in every}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = method.encode_text(batch), hollow.encode_video(batch.to(there))
    del features  # until here: a storage that is freed gives its number away
    return sum(kept.values())
