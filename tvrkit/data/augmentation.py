"""Augmentations of training clips, by name.

Each takes a clip (F, 3, H, W) uint8 and S, the size of a training frame, and returns a clip (F, 3,
H', W') uint8, which is then fitted to S x S. Draws come from torch's global generator.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tvrkit.torchvision_compat import v2

F = v2.functional
JITTERED = ("brightness", "contrast", "saturation", "hue")
LUMA = np.array([0.299, 0.587, 0.114])  # brightness of RGB
YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
RGB = np.linalg.inv(YIQ)
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"  # timm's name of GLSCL's


def hmmc(clip: Tensor, size: int) -> Tensor:
    """HMMC's pre-training augmentation, one draw for all frames, so that what is alike in two of
    them stays alike: random resized crop (0.2 to 1 of the area), blur, flip, colour jitter, grey.

    Released loaders change each frame on its own, one operation after the other; here all that
    happens to a clip's colours is one matrix, which Pillow applies while the clip is small.
    """
    box = v2.RandomResizedCrop(size, scale=(0.2, 1.0)).make_params([clip])
    frames = F.crop(clip, *(box[side] for side in ("top", "left", "height", "width")))
    if torch.rand(()) < 0.5:
        sigma = torch.empty(()).uniform_(0.1, 2.0).item()
        frames = F.resize(frames, blurred_size(size, sigma), antialias=True)
    if torch.rand(()) < 0.5:
        frames = frames.flip(-1)
    colours = jitter(frames[..., ::8, ::8].float().mean((0, 2, 3)).double().numpy())
    if (colours != np.eye(3, 4)).any():
        strip = Image.fromarray(frames.permute(0, 2, 3, 1).flatten(0, 1).numpy())
        changed = np.array(strip.convert("RGB", tuple(colours.flatten().tolist())))
        frames = torch.from_numpy(changed).unflatten(0, (len(clip), -1)).permute(0, 3, 1, 2)
    return F.resize(frames, [size, size], antialias=True)


def blurred_size(size: int, sigma: float) -> list[int]:
    """The size from which enlarging blurs by `sigma` pixels: pixels r wide are made by a triangle
    of variance r^2 / 6 and spread by another."""
    return 2 * [round(size / max(1.0, math.sqrt(3) * sigma))]


def jitter(mean: np.ndarray) -> np.ndarray:
    """(3, 4) float, what torchvision's colour jitter (0.4, 0.4, 0.4, 0.1; in 80 %) and grey (20 %)
    make of an RGB pixel (r, g, b, 1).

    Nothing is cut off between its steps, contrast is about the brightness of `mean` (3,), the
    clip's, and the hue turns in the plane of equal brightness.
    """
    grey, colours = np.tile(LUMA, (3, 1)), np.eye(4)
    drawn = v2.ColorJitter(0.4, 0.4, 0.4, 0.1).make_params([])
    brightness, contrast, saturation, hue = (drawn[f"{name}_factor"] for name in JITTERED)
    angle = -2 * math.pi * hue  # the plane is seen from behind
    turn = np.eye(3)
    turn[1:, 1:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    steps = [
        brightness * np.eye(3),
        contrast * np.eye(3),
        saturation * np.eye(3) + (1 - saturation) * grey,
        RGB @ turn @ YIQ,
    ]
    for step in drawn["fn_idx"].tolist() if torch.rand(()) < 0.8 else []:
        shift = (1 - contrast) * LUMA @ colours[:3] @ [*mean, 1] if step == 1 else 0.0
        colours[:3] = steps[step] @ colours[:3]
        colours[:3, 3] += shift
    return grey @ colours[:3] if torch.rand(()) < 0.2 else colours[:3]


def hmmc_per_frame(clip: Tensor, size: int) -> Tensor:
    """The same with a draw for each frame, as released (finding 32)."""
    return torch.cat([hmmc(frame[None], size) for frame in clip])


def rand_augment(clip: Tensor, size: int) -> Tensor:
    """RandAugment (Cubuk et al., 2020) by timm, as GLSCL trains with it, one draw for all
    frames."""
    from timm.data.auto_augment import rand_augment_transform  # which needs `torchvision_compat`

    change = rand_augment_transform(RAND_AUGMENT, {"interpolation": Image.Resampling.BICUBIC})
    seed, states = int(torch.randint(2**32, ())), (random.getstate(), np.random.get_state())
    frames = []
    for frame in clip:
        random.seed(seed)  # timm draws from both
        np.random.seed(seed)
        frames.append(F.pil_to_tensor(change(F.to_pil_image(frame))))
    random.setstate(states[0])
    np.random.set_state(states[1])
    return torch.stack(frames)


AUGMENTATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "hmmc": hmmc,
    "hmmc-per-frame": hmmc_per_frame,
    "randaugment": rand_augment,
}
