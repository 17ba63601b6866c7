"""Several processes: rows gathered so that N of them have the gradient of one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class GatherRows(torch.autograd.Function):
    """Rows of all processes in rank order, (B, ...) -> (world B, ...).

    Every rank computes the same loss on the gathered rows, so each already holds the whole gradient
    of its own rows. DDP then averages over ranks, hence the factor `world`: the encoder's gradient
    equals that of a single process (the released codes halve it on 2 ranks).
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        """All ranks' rows."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """This rank's rows of the gradient, times the number of ranks."""
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def gather(features):
    """The rows of all processes on every process, differentiable; the same object where there is
    one process."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return features
    return features._map(GatherRows.apply)
