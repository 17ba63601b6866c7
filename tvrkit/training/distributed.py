"""Several processes that train as one: rows are gathered and gradients averaged, so that N
processes have the gradient of one."""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tvrkit.data import processes

TIMEOUT = timedelta(minutes=10)  # that a process waits for the others before it ends with an error


def start(device: torch.device) -> torch.device:
    """Join the processes of a launch (`torchrun`, `accelerate launch`: both say so in the
    environment), if this is one of several.

    Returns:
        The device of this process: `device`, or of several GPUs its own.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # one machine: gloo need not look up its name, for which it can wait minutes
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return device


class GatherRows(torch.autograd.Function):
    """Rows of all processes in rank order, (B, ...) -> (world B, ...).

    Every rank computes the same loss on the gathered rows, so each already holds the whole gradient
    of its own rows. `average_gradients` then divides by the number of ranks, hence the factor: the
    encoder's gradient equals that of a single process (the released codes halve it on 2 ranks).
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        """All ranks' rows."""
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes.count())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """This rank's rows of the gradient, times the number of ranks."""
        return gradient.chunk(processes.count())[processes.rank()] * processes.count()


def gather(features):
    """The rows of all processes on every process, differentiable; the same object where there is
    one process."""
    return features if processes.count() == 1 else features.map(GatherRows.apply)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over all processes of every gradient, in place. A parameter that the loss does not
    reach has none on any of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if processes.count() == 1 or not gradients:
        return
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / processes.count(), gradients)
