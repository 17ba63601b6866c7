"""Augmentations by name: what they keep of a clip, and RandAugment operation by operation."""

import colorsys
import random

import numpy as np
import pytest
import torch

from tvrkit.data import augmentation
from tvrkit.data.augmentation import AUGMENTATIONS, blurred_size, jitter
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


@pytest.mark.parametrize("seed", range(12))
def test_one_matrix_does_what_torchvisions_operations_do(seed, monkeypatch):
    """One after the other, in the drawn order; no value of the picture is cut off by them. Hue
    has a test of its own."""
    clip = (0.5 + (picture().double() / 255 - 0.5) / 5).expand(3, -1, -1, -1)
    draw = v2.ColorJitter(0.4, 0.4, 0.4, 0.1).make_params
    torch.manual_seed(seed)
    drawn, changed = draw([]) | {"hue_factor": 0.0}, torch.rand(()) < 0.8
    grey, expected = torch.rand(()) < 0.2, clip
    for step in drawn["fn_idx"].tolist() if changed else []:
        name = ("brightness", "contrast", "saturation", "hue")[step]
        expected = getattr(v2.functional, f"adjust_{name}")(expected, drawn[f"{name}_factor"])
    if grey:
        expected = v2.functional.rgb_to_grayscale(expected, num_output_channels=3)
    monkeypatch.setattr(v2.ColorJitter, "make_params", lambda *_: draw([]) | {"hue_factor": 0.0})
    torch.manual_seed(seed)
    colours = torch.from_numpy(jitter(255 * clip.mean((0, 2, 3)).numpy()))
    found = torch.einsum("cd,fdhw->fchw", colours[:, :3], 255 * clip) + colours[:, 3, None, None]
    torch.testing.assert_close(found, 255 * expected, atol=0.2, rtol=0)


def test_hue_turns_and_leaves_brightness_and_grey(monkeypatch):
    drawn = {f"{name}_factor": 1.0 for name in ("brightness", "contrast", "saturation")}
    drawn |= {"fn_idx": torch.tensor([3]), "hue_factor": 0.1}
    monkeypatch.setattr(v2.ColorJitter, "make_params", lambda *_: drawn)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.5))  # jitter, and no grey
    turn = jitter(np.zeros(3))
    assert turn[:, 3] == pytest.approx(0)
    assert turn[:, :3] @ np.full(3, 100) == pytest.approx(np.full(3, 100))
    for colour in np.random.default_rng(0).uniform(80, 170, (50, 3)):
        found = turn[:, :3] @ colour
        assert found @ [0.299, 0.587, 0.114] == pytest.approx(colour @ [0.299, 0.587, 0.114])
        hues = [colorsys.rgb_to_hsv(*rgb)[0] for rgb in (colour, found)]
        assert (hues[1] - hues[0] + 0.5) % 1 - 0.5 == pytest.approx(0.1, abs=0.07)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_enlarging_blurs_as_far_as_sigma(sigma):
    """The spread of single bright columns, wherever they lie between the smaller pixels."""
    spreads, x = [], torch.arange(224.0)
    for at in range(90, 130):
        frame = torch.zeros(1, 3, 224, 224)
        frame[..., at] = 1
        small = v2.functional.resize(frame, blurred_size(224, sigma), antialias=True)
        line = v2.functional.resize(small, [224, 224], antialias=True)[0, 0, 112]
        mean = (line * x).sum() / line.sum()
        spreads.append(((line * (x - mean).square()).sum() / line.sum()).item())
    assert np.sqrt(np.mean(spreads)) == pytest.approx(sigma, rel=0.1)


def test_hmmc_views_are_mirrored_and_blurred_by_halves_and_some_are_grey(monkeypatch):
    sigmas, real = [], augmentation.blurred_size
    monkeypatch.setattr(
        augmentation, "blurred_size", lambda size, s: sigmas.append(s) or real(size, s)
    )
    ramp = torch.stack([torch.linspace(60, 190, 200) + 20 * c for c in range(3)])
    clip, views = ramp[None, :, None].expand(2, -1, 200, -1).byte(), []
    for seed in range(200):
        torch.manual_seed(seed)
        views.append(AUGMENTATIONS["hmmc"](clip, 40)[0].float())
    grey = [(view.max(0).values - view.min(0).values).max() <= 1 for view in views]
    assert 0.1 < np.mean(grey) < 0.3
    assert 0.4 < np.mean([bool(view[0, 0, -1] < view[0, 0, 0]) for view in views]) < 0.6
    assert 80 < len(sigmas) < 120
    assert 0.1 <= min(sigmas) < 0.2 < 1.9 < max(sigmas) <= 2
    assert len({view.mean().item() for view in views}) > 190


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
