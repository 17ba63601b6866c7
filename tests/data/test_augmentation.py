"""Augmentations by name: what they keep of a clip, and RandAugment operation by operation."""

import random

import numpy as np
import pytest
import torch

from tvrkit.data.augmentation import AUGMENTATIONS
from tvrkit.settings import DataConfig
from tvrkit.torchvision_compat import v2


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


def test_hmmc_is_that_of_torchvision_on_tensors():
    """Draw by draw, but for the rounding of Pillow's HSV."""
    clip, size = picture().expand(2, -1, -1, -1), 40
    plain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    )
    for seed in range(20):
        torch.manual_seed(seed)
        expected = plain(clip)
        torch.manual_seed(seed)
        found = AUGMENTATIONS["hmmc"](clip, size)
        apart = (found.float() - expected.float()).abs()
        assert apart.mean() < 2
        assert apart.max() < 20


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


def test_randaugment_is_glscls(monkeypatch):
    """Four operations of timm's "increasing" set, each applied to every second clip, of strength
    N(7, 0.5) of 10, out of the seed of torch; what others draw stays as it is."""
    from timm.data import auto_augment

    made, real = [], auto_augment.rand_augment_transform
    monkeypatch.setattr(
        auto_augment, "rand_augment_transform", lambda *given: made.append(real(*given)) or made[-1]
    )
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    clip, views = picture().expand(2, -1, -1, -1), []
    for _ in range(2):
        torch.manual_seed(3)
        views.append(AUGMENTATIONS["randaugment"](clip, 32))
    assert torch.equal(*views)
    assert (random.random(), np.random.rand()) == expected
    change = made[0]
    assert change.num_layers == 4
    assert len(change.ops) == 15
    for op in change.ops:
        assert (op.prob, op.magnitude, op.magnitude_std) == (0.5, 7, 0.5)
    assert {op.name for op in change.ops} >= {"PosterizeIncreasing", "SharpnessIncreasing"}


def test_settings_name_them():
    named = [DataConfig("x", augmentation=name).augmentation for name in AUGMENTATIONS]
    assert named == list(AUGMENTATIONS)
    assert DataConfig("x").augmentation is False


def test_what_is_alike_in_two_frames_stays_alike():
    """Colours, contrast included, are one change of the whole clip."""
    clip = picture().expand(2, -1, -1, -1).clone()
    clip[1, :, -clip.shape[2] // 4 :] = 0  # the lower quarter of the second frame
    alike = []
    for seed in range(20):
        torch.manual_seed(seed)
        first, second = AUGMENTATIONS["hmmc"](clip, 40)
        alike.append((first == second).float().mean().item())
    assert np.mean(alike) > 0.6
