"""Momentum encoders and queues of negatives (MoCo; He et al., 2020), as HMMC's pre-training uses
them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def momentum_update(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast, parameter by parameter.

    Buffers are left alone: the BatchNorm statistics of the slow copy come from its own forward
        passes.

    Args:
        slow: the momentum encoder, at the start a copy of `fast`.
        fast: the encoder that is trained.
        momentum: in [0, 1].
    """
    for ours, theirs in zip(slow.parameters(), fast.parameters(), strict=True):
        ours.lerp_(theirs, 1.0 - momentum)


class NegativeQueue(nn.Module):
    """The last `size` keys, unit vectors, in a ring buffer. Any number of keys may be pushed at a
    time.

    The released code writes columns [pointer, pointer + batch), which fails as soon as the size is
    no multiple of the batch; the ring wraps. Where it is a multiple, both hold the same.

    Args:
        width: D of the keys.
        size: number of keys kept, at least 1. It starts with random unit vectors.

    Attributes:
        keys: (D, size) float buffer, one key a column; saved with the weights.
        pointer: () int64 buffer, the column that the next key overwrites.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, width: int, size: int):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Tensor:
        """(D, size) float copy of the keys: a push before the backward pass leaves it as it is."""
        return self.keys.clone()

    @torch.no_grad()
    def push(self, keys: Tensor, valid: Tensor | None = None) -> None:
        """Overwrite the oldest keys by `keys` (N, D) float, normalised here, or by those that are
        `valid` (N,) bool; only the last `size` stay.

        How many are valid is not read, which a GPU would be waited for: they come last, and what
        comes before them writes the newest keys again.
        """
        count, size = len(keys), self.keys.shape[1]
        valid = keys.new_ones(count, dtype=torch.bool) if valid is None else valid
        rows = valid.argsort(stable=True)[-size:]
        place = torch.arange(count, device=keys.device)[-size:] - (count - valid.sum())
        columns = (self.pointer + place) % size
        new = F.normalize(keys[rows], dim=-1).T.to(self.keys.dtype)
        self.keys[:, columns] = torch.where(valid[rows], new, self.keys[:, columns])
        self.pointer.add_(valid.sum()).remainder_(size)
