"""Momentum encoders and queues: wrapping at any size, and what is saved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvrkit.models.momentum import NegativeQueue, momentum_update


@pytest.mark.parametrize("size", [1, 5, 16, 17])
@pytest.mark.parametrize("batch", [1, 6, 40])
@pytest.mark.parametrize("share", [None, 1.0, 0.5, 0.0])
def test_queue_wraps_at_any_size_and_takes_what_is_valid(size, batch, share):
    queue = NegativeQueue(4, size)
    start, history = queue.keys.T.clone(), []
    for _ in range(5):
        keys = torch.randn(batch, 4)
        valid = None if share is None else torch.rand(batch) < share
        queue.push(keys, valid)
        history.extend(F.normalize(keys if valid is None else keys[valid], dim=-1))
    expected = list(start)
    for number, key in enumerate(history):
        expected[number % size] = key
    torch.testing.assert_close(queue.keys.T, torch.stack(expected))
    assert queue.pointer == len(history) % size


def test_queue_is_saved_and_takes_no_gradient():
    queue = NegativeQueue(4, 6)
    queue.push(torch.randn(5, 4, requires_grad=True))
    assert not queue.keys.requires_grad
    assert set(queue.state_dict()) == {"keys", "pointer"}
    other = NegativeQueue(4, 6)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert other.pointer == 5


def test_momentum_zero_copies_and_buffers_stay():
    fast, slow = (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2))
    fast[1].running_mean += 1
    momentum_update(slow, fast, 0.0)
    assert torch.equal(slow[0].weight, fast[0].weight)
    assert not torch.equal(slow[1].running_mean, fast[1].running_mean)


def test_momentum_update_moves_a_little_towards_the_fast_one():
    fast, slow = nn.Linear(5, 3), nn.Linear(5, 3)
    expected = {
        key: 0.99 * p + 0.01 * fast.state_dict()[key] for key, p in slow.state_dict().items()
    }
    momentum_update(slow, fast, 0.99)
    torch.testing.assert_close(dict(slow.state_dict()), expected)
