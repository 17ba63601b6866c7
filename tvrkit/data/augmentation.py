"""Augmentations of training clips, by name.

Each takes a clip (F, 3, H, W) uint8 and S, the size of a training frame, and returns a clip (F, 3,
H', W') uint8, which is then fitted to S x S. Draws come from torch's global generator.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tvrkit._torchvision import v2

F = v2.functional
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"  # timm's name of GLSCL's


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
    """RandAugment (Cubuk et al., 2020) by timm, as GLSCL trains with it, one draw for all
    frames."""
    from timm.data.auto_augment import rand_augment_transform  # which needs `_torchvision`

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
