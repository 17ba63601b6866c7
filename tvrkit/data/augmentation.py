"""Augmentations of training clips, by name.

Each takes a clip (F, 3, H, W) uint8 and S, the size of a training frame, and returns a clip (F, 3,
H', W') uint8, which is then fitted to S x S. Draws come from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tvrkit._torchvision import InterpolationMode, v2

F = v2.functional
FILL = [128.0] * 3  # what a shifted frame uncovers
LAYERS, PROBABILITY, MAGNITUDE, SPREAD = 4, 0.5, 7.0, 0.5  # rand-m7-n4-mstd0.5, out of 10


def hmmc(clip: Tensor, size: int) -> Tensor:
    """HMMC's pre-training augmentation, one draw for all frames: random resized crop (0.2 to 1 of
    the area), colour jitter, grey, blur, horizontal flip."""
    blur = v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))
    change = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([blur], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    )
    return change(clip)


def hmmc_per_frame(clip: Tensor, size: int) -> Tensor:
    """The same with a draw for each frame, as released (finding 32)."""
    return torch.cat([hmmc(frame[None], size) for frame in clip])


def rand_augment(clip: Tensor, size: int) -> Tensor:
    """RandAugment (Cubuk et al., 2020) as GLSCL trains with it, rand-m7-n4-mstd0.5-inc1, one draw
    for all frames: four of `OPERATIONS`, each with probability 1/2 and of a strength that is
    N(7, 0.5) out of 10. Frames turned or shifted are interpolated linearly, in GLSCL cubically."""
    names = list(OPERATIONS)
    for index in torch.randint(len(names), (LAYERS,)).tolist():
        applied, positive = (torch.rand(2) < PROBABILITY).tolist()
        if applied:
            level = min(max(torch.normal(MAGNITUDE, SPREAD, ()).item() / 10, 0.0), 1.0)
            clip = OPERATIONS[names[index]](clip, level, 1 if positive else -1)
    return clip


def _affine(
    clip: Tensor,
    angle: float = 0.0,
    shift: Sequence[float] = (0, 0),
    shear: Sequence[float] = (0, 0),
) -> Tensor:
    """Turned and shifted in the plane; a shear leaves the upper left corner where it is."""
    centre = [0.0, 0.0] if any(shear) else None
    degrees = [math.degrees(math.atan(part)) for part in shear]
    moved = {"translate": [round(part) for part in shift], "scale": 1.0, "shear": degrees}
    look = {"interpolation": InterpolationMode.BILINEAR, "fill": FILL, "center": centre}
    return F.affine(clip, angle, **moved, **look)


# (clip, level in [0, 1], sign) -> clip; those of "inc1" grow with the level
OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "AutoContrast": lambda clip, level, sign: F.autocontrast(clip),
    "Equalize": lambda clip, level, sign: F.equalize(clip),
    "Invert": lambda clip, level, sign: F.invert(clip),
    "Rotate": lambda clip, level, sign: _affine(clip, sign * 30 * level),
    "PosterizeIncreasing": lambda clip, level, sign: F.posterize(clip, 4 - int(4 * level)),
    "SolarizeIncreasing": lambda clip, level, sign: F.solarize(clip, min(255, 256 - 256 * level)),
    "SolarizeAdd": lambda clip, level, sign: torch.where(clip < 128, clip + int(110 * level), clip),
    "ColorIncreasing": lambda clip, level, sign: F.adjust_saturation(clip, 1 + sign * 0.9 * level),
    "ContrastIncreasing": lambda clip, level, sign: F.adjust_contrast(clip, 1 + sign * 0.9 * level),
    "BrightnessIncreasing": lambda clip, level, sign: F.adjust_brightness(
        clip, 1 + sign * 0.9 * level
    ),
    "SharpnessIncreasing": lambda clip, level, sign: F.adjust_sharpness(
        clip, 1 + sign * 0.9 * level
    ),
    "ShearX": lambda clip, level, sign: _affine(clip, shear=(sign * 0.3 * level, 0)),
    "ShearY": lambda clip, level, sign: _affine(clip, shear=(0, sign * 0.3 * level)),
    "TranslateXRel": lambda clip, level, sign: _affine(
        clip, shift=(sign * 0.45 * level * clip.shape[-1], 0)
    ),
    "TranslateYRel": lambda clip, level, sign: _affine(
        clip, shift=(0, sign * 0.45 * level * clip.shape[-2])
    ),
}
AUGMENTATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "hmmc": hmmc,
    "hmmc-per-frame": hmmc_per_frame,
    "randaugment": rand_augment,
}
