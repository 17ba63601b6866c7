"""Augmentations of training clips, by name.

Each takes a clip (F, 3, H, W) uint8 and S, the size of a training frame, and returns a clip (F, 3,
H', W') uint8, which is then fitted to S x S. Draws come from torch's global generator.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tvrkit.torchvision_compat import v2

F = v2.functional
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"  # timm's name of GLSCL's


def hmmc(clip: Tensor, size: int) -> Tensor:
    """HMMC's pre-training augmentation, one draw for all frames: random resized crop (0.2 to 1 of
    the area), colour jitter, grey, blur, horizontal flip.

    Colours change in one picture of all frames, so that what is alike in two frames stays alike:
    contrast is about the clip's mean brightness. Pillow does it, as released: on tensors it takes
    more than twice as long.
    """
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    blur = v2.RandomApply([Blur(2 * (size // 20) + 1, (0.1, 2.0))], p=0.5)
    frames = v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True)(clip)
    strip = Image.fromarray(frames.permute(0, 2, 3, 1).flatten(0, 1).numpy())
    strip = v2.RandomGrayscale(p=0.2)(jitter(strip))
    frames = torch.from_numpy(np.array(strip)).unflatten(0, (len(clip), size)).permute(0, 3, 1, 2)
    return v2.RandomHorizontalFlip()(blur(frames))


class Blur(v2.GaussianBlur):
    """torchvision's, one direction after the other and to three sigma: to rounding the same."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Of (F, 3, H, W) uint8."""
        sigma, longest = params["sigma"], self.kernel_size[0]
        size = min(longest, 2 * math.ceil(3 * sigma[0]) + 1)
        return F.gaussian_blur(F.gaussian_blur(inpt, [size, 1], sigma), [1, size], sigma)


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
