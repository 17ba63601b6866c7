"""Augmentations by name: what they keep of a clip, and RandAugment operation by operation."""

import numpy as np
import pytest
import torch
from PIL import Image

from tvrkit.data import augmentation
from tvrkit.data.augmentation import AUGMENTATIONS, OPERATIONS
from tvrkit.settings import DataConfig


def picture(height=60, width=80, seed=0):
    """A smooth picture with all brightnesses, (3, H, W) uint8."""
    phase = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed)) * 6
    y, x = torch.linspace(0, 5, height)[:, None], torch.linspace(0, 7, width)
    waves = [torch.sin(y + a) + torch.cos(x + b) for a, b in phase.tolist()]
    return (255 * (torch.stack(waves) / 4 + 0.5)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("name", "frames_alike"), [("hmmc", True), ("hmmc-per-frame", False)])
@pytest.mark.parametrize("seed", range(3))
def test_hmmc_draws_once_a_clip_and_as_released_once_a_frame(name, frames_alike, seed):
    clip = picture().expand(5, -1, -1, -1)
    torch.manual_seed(seed)
    changed = AUGMENTATIONS[name](clip, 32)
    assert (changed.shape, changed.dtype) == ((5, 3, 32, 32), torch.uint8)
    assert bool((changed == changed[:1]).all()) == frames_alike


def test_randaugment_draws_once_a_clip_and_keeps_the_size():
    clip = picture().expand(4, -1, -1, -1)
    views = []
    for seed in range(12):
        torch.manual_seed(seed)
        views.append(AUGMENTATIONS["randaugment"](clip, 32))
        assert views[-1].dtype == torch.uint8
        assert (views[-1] == views[-1][:1]).all()
    assert len({view[0].numpy().tobytes() for view in views}) > 6
    assert {view.shape for view in views} == {clip.shape}  # it is fitted afterwards


def test_randaugment_is_m7_n4_mstd05(monkeypatch):
    """rand-m7-n4-mstd0.5: four operations, each applied to every second clip, of strength N(7, 0.5)
    of 10."""
    met = []
    recorders = {
        name: lambda clip, level, sign, name=name: met.append((name, level, sign)) or clip
        for name in OPERATIONS
    }
    monkeypatch.setattr(augmentation, "OPERATIONS", recorders)
    torch.manual_seed(0)
    for _ in range(3000):
        AUGMENTATIONS["randaugment"](torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 4)
    levels, signs = np.array([level for _, level, _ in met]), [sign for *_, sign in met]
    assert len(met) / 3000 == pytest.approx(2, abs=0.06)
    assert {name for name, *_ in met} == set(OPERATIONS)
    assert len(OPERATIONS) == 15
    assert levels.mean() == pytest.approx(0.7, abs=0.003)
    assert levels.std() == pytest.approx(0.05, abs=0.003)
    assert np.mean([sign == 1 for sign in signs]) == pytest.approx(0.5, abs=0.03)
    assert set(signs) == {-1, 1}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_timms(name, monkeypatch):
    """The "increasing" set of timm, on images; signs go either way there too."""
    theirs = pytest.importorskip("timm.data.auto_augment")
    image = picture(seed=1)
    op = theirs.AugmentOp(name, 1.0, 7, {"interpolation": Image.BILINEAR, "img_mean": (128,) * 3})
    monkeypatch.setattr(theirs, "_randomly_negate", lambda value: value)
    expected = np.asarray(op(Image.fromarray(image.permute(1, 2, 0).numpy()))).astype(int)
    sides = [OPERATIONS[name](image[None], 0.7, sign)[0].permute(1, 2, 0).int() for sign in (1, -1)]
    apart = [np.abs(side.numpy() - expected).mean() for side in sides]
    assert min(apart) < 1.5  # of 255; edges are blended differently


def test_settings_name_them():
    named = [DataConfig("x", augmentation=name).augmentation for name in AUGMENTATIONS]
    assert named == list(AUGMENTATIONS)
    assert DataConfig("x").augmentation is False
