"""Two processes whose gradient is that of one."""

from datetime import timedelta

import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from tests.training.toy import Backbone, Toy, batch_of
from tvrkit.training.distributed import gather
from tvrkit.training.trainer import Step


def test_one_process_gathers_nothing():
    batch = batch_of(range(4))
    assert gather(batch) is batch


def _gradient_of_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(minutes=2), rank=rank, world_size=2
    )
    torch.manual_seed(0)
    method = Toy(Backbone(), None).eval()
    step = nn.parallel.DistributedDataParallel(Step(method))
    step(batch_of(range(rank * 4, rank * 4 + 4)))["loss"].backward()
    torch.save({name: p.grad for name, p in method.named_parameters()}, folder / f"{rank}.pt")
    torch.distributed.barrier()  # who leaves early can leave the other waiting
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    multiprocessing.spawn(_gradient_of_rank, (tmp_path,), nprocs=2)
    torch.manual_seed(0)
    method = Toy(Backbone(), None).eval()
    Step(method)(batch_of(range(8)))["loss"].backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, p in method.named_parameters():
            torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-7)
