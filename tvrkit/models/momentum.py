"""Momentum encoders and queues of negatives (MoCo; He et al., 2020), as HMMC's pre-training uses
them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def freeze_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` that takes no gradient: the start of its momentum encoder."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def momentum_update(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast, parameter by parameter.

    Buffers are left alone: the BatchNorm statistics of the slow copy come from its own forward
        passes.

    Args:
        slow: the momentum encoder, made by `freeze_copy(fast)`.
        fast: the encoder that is trained.
        momentum: in [0, 1].

    Raises:
        ValueError: the two have different parameters, or the momentum is out of range.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    ours, theirs = dict(slow.named_parameters()), dict(fast.named_parameters())
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"momentum encoder: parameters differ: {sorted(ours.keys() ^ theirs.keys())[:3]}"
        )
    for name, parameter in ours.items():
        parameter.lerp_(theirs[name], 1.0 - momentum)


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

    def __init__(self, width: int, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"queue size: expected at least 1, got {size}")
        self.register_buffer("keys", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Tensor:
        """(D, size) float copy of the keys: a push before the backward pass leaves it as it is."""
        return self.keys.clone()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest keys by `keys` (N, D) float, normalised here; only the last `size`
        stay."""
        rows, columns = _ring(self.pointer, len(keys), self.keys.shape[1])
        self.keys[:, columns] = F.normalize(keys[rows], dim=-1).T.to(self.keys.dtype)
        self.pointer.add_(len(keys)).remainder_(self.keys.shape[1])


class FeatureQueue(nn.Module):
    """The last `size` rows of several tensors, as they are, in one ring buffer; empty at first.

    Args:
        size: number of rows kept, at least 1.
        fields: name -> shape and dtype of one row.

    Attributes:
        pushed: () int64 buffer, rows pushed so far. It and the rows are saved with the weights.
    """

    def __init__(self, size: int, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]]):
        super().__init__()
        if size < 1:
            raise ValueError(f"queue size: expected at least 1, got {size}")
        self.size, self.fields = size, list(fields)
        for name, (shape, dtype) in fields.items():
            self.register_buffer(name, torch.zeros(size, *shape, dtype=dtype))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def rows(self) -> dict[str, Tensor]:
        """Copies (K, ...) of the rows that are filled: a push before the backward pass leaves them
        as they are."""
        filled = min(int(self.pushed), self.size)
        return {name: self.get_buffer(name)[:filled].clone() for name in self.fields}

    @torch.no_grad()
    def push(self, new: Mapping[str, Tensor]) -> None:
        """Overwrite the oldest rows by `new`, name -> (N, ...), of any N; only the last `size`
        stay.

        Raises:
            ValueError: a tensor is not N rows of its field's shape; nothing is pushed then.
        """
        count = len(next(iter(new.values())))
        for name in self.fields:
            expected, found = (count, *self.get_buffer(name).shape[1:]), tuple(new[name].shape)
            if found != expected:
                raise ValueError(f"queue, {name}: expected shape {expected}, got {found}")
        rows, slots = _ring(self.pushed, count, self.size)
        for name in self.fields:
            buffer = self.get_buffer(name)
            buffer[slots] = new[name][rows].to(buffer.dtype)
        self.pushed.add_(count)


def _ring(pointer: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Which of `count` new rows stay in a ring of `size`, and the slots they take from `pointer`
    on."""
    rows = torch.arange(count, device=pointer.device)[-size:]
    return rows, (pointer + rows) % size
