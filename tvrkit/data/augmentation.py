"""Augmentations of training clips, by name.

Each takes a clip (F, 3, H, W) uint8 and S, the size of a training frame, and returns a clip (F, 3,
H', W') uint8, which is then fitted to S x S. Draws come from torch's global generator.
"""

import math
from collections.abc import Callable

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
    operations = list(OPERATIONS.values())
    for index in torch.randint(len(operations), (LAYERS,)).tolist():
        applied, positive = (torch.rand(2) < PROBABILITY).tolist()
        if applied:
            level = torch.normal(MAGNITUDE, SPREAD, ()).clamp(0, 10).item() / 10
            clip = operations[index](clip, level, 1 if positive else -1)
    return clip


def _move(clip: Tensor, angle: float = 0.0, shift=(0, 0), shear=(0.0, 0.0)) -> Tensor:
    """Turned by degrees about the middle, shifted by shares of the size, or sheared about the upper
    left corner."""
    pixels = [round(part * size) for part, size in zip(shift, clip.shape[:-3:-1], strict=True)]
    degrees = [math.degrees(math.atan(part)) for part in shear]
    look = {"interpolation": InterpolationMode.BILINEAR, "fill": FILL}
    return F.affine(
        clip, angle, pixels, 1.0, degrees, center=[0, 0] if any(shear) else None, **look
    )


# of (clip, level in [0, 1], sign); those of "inc1" grow with the level
OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "AutoContrast": lambda clip, level, sign: F.autocontrast(clip),
    "Equalize": lambda clip, level, sign: F.equalize(clip),
    "Invert": lambda clip, level, sign: F.invert(clip),
    "PosterizeIncreasing": lambda clip, level, sign: F.posterize(clip, 4 - int(4 * level)),
    "SolarizeIncreasing": lambda clip, level, sign: F.solarize(clip, min(255, 256 - 256 * level)),
    "SolarizeAdd": lambda clip, level, _: torch.where(clip < 128, clip + int(110 * level), clip),
    "ColorIncreasing": lambda clip, level, sign: F.adjust_saturation(clip, 1 + sign * 0.9 * level),
    "ContrastIncreasing": lambda clip, level, sign: F.adjust_contrast(clip, 1 + sign * 0.9 * level),
    "BrightnessIncreasing": lambda clip, x, sign: F.adjust_brightness(clip, 1 + sign * 0.9 * x),
    "SharpnessIncreasing": lambda clip, x, sign: F.adjust_sharpness(clip, 1 + sign * 0.9 * x),
    "Rotate": lambda clip, level, sign: _move(clip, sign * 30 * level),
    "ShearX": lambda clip, level, sign: _move(clip, shear=(sign * 0.3 * level, 0.0)),
    "ShearY": lambda clip, level, sign: _move(clip, shear=(0.0, sign * 0.3 * level)),
    "TranslateXRel": lambda clip, level, sign: _move(clip, shift=(sign * 0.45 * level, 0)),
    "TranslateYRel": lambda clip, level, sign: _move(clip, shift=(0, sign * 0.45 * level)),
}
AUGMENTATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "hmmc": hmmc,
    "hmmc-per-frame": hmmc_per_frame,
    "randaugment": rand_augment,
}
