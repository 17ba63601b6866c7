"""Benchmarks run on two threads, as the targets say."""

import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
