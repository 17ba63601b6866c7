"""A training step of the quick profile as it is and with open_clip's own way through the towers.

Loss and gradients are checked against each other, times are not.
"""

import pytest
import torch

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models import towers
from tvrkit.recipes import load_recipe
from tvrkit.training import runs
from tvrkit.training.large_batch import backward

BATCH, WORDS, FRAMES = 64, 32, 8
RECIPES = ["clip4clip_shapes", "dmae_shapes", "glscl_shapes", "hmmc_shapes"]


def batch(rows=BATCH, frames=FRAMES, size=64):
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(WORDS) < torch.randint(8, 24, (rows, 1), generator=random)
    tokens = torch.randint(1, 1000, (rows, WORDS), generator=random) * mask
    tokens[torch.arange(rows), mask.sum(1) - 1] = 1299
    shape = (rows, frames, 3, size, size)
    pictures = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    frame_mask, numbers = torch.ones(rows, frames, dtype=torch.bool), torch.arange(rows)
    return TextVideoBatch(tokens, mask, mask.long(), pictures, frame_mask, numbers, numbers)


@pytest.fixture
def step():
    torch.set_num_threads(1)

    def make(recipe):
        torch.manual_seed(0)
        method = runs.build_method(load_recipe(recipe, ["data.prepared=none"])).eval()
        rows = batch()

        def take():
            method.zero_grad()
            parts, _ = backward(method, rows)
            return parts["loss"].item(), [p.grad for p in method.parameters()]

        return take

    return make


@pytest.mark.parametrize("recipe", RECIPES)
def bench_step(against, step, recipe, monkeypatch):
    take = step(recipe)

    def plain():
        with monkeypatch.context() as patched:
            patched.setattr(towers, "fits", lambda tower: False)
            return take()

    what = f"a step of {recipe}, batch {BATCH} x {FRAMES} frames, against open_clip's towers"
    (loss, gradients), (expected, others) = against(plain, take, what)
    assert loss == pytest.approx(expected, abs=1e-4)
    for one, other in zip(gradients, others, strict=True):
        if one is not None:  # of the whole tensor: single elements turn at a ReLU's kink
            assert (one - other).norm() <= 2e-3 * one.norm() + 1e-7
