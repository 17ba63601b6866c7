"""Momentum encoders and queues: the released pushes, wrapping at any size, and what is saved."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tvrkit.momentum import NegativeQueue, freeze_copy, momentum_update

GOLDEN = load_file(Path(__file__).parent / "golden" / "hmmc_contrast.safetensors")
QUEUES = {
    "v_cross": "v",
    "title_cross": "title",
    "tag_cross": "tag",
    "frame_cross": "frame_fea",
    "frame_proj": "frame_proj",
}


@pytest.mark.parametrize(("name", "pushed"), QUEUES.items())
def test_queue_holds_what_the_released_one_does(name, pushed):
    expected = GOLDEN[f"enqueue.after4.queue_{name}_ng"]
    queue = NegativeQueue(*expected.shape)
    for step in range(5):
        keys = GOLDEN[f"enqueue.step{step}.{pushed}"]
        queue.push(keys.flatten(0, -2))
        frames = keys[0].numel() // keys.shape[-1]
        assert queue.pointer == GOLDEN[f"enqueue.after{step}.queue_ptr"] * frames % expected.shape[1]
    torch.testing.assert_close(queue.keys, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 16, 17])
@pytest.mark.parametrize("batch", [1, 6, 40])
def test_queue_wraps_at_any_size(size, batch):
    queue = NegativeQueue(4, size)
    start, history = queue.keys.T.clone(), []
    for _ in range(5):
        keys = torch.randn(batch, 4)
        queue.push(keys)
        history.extend(F.normalize(keys, dim=-1))
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


def test_queue_needs_room():
    with pytest.raises(ValueError, match="got 0"):
        NegativeQueue(4, 0)


def test_momentum_update_is_the_released_one():
    fast, slow = nn.Linear(5, 3), nn.Linear(5, 3)
    fast.load_state_dict({key: GOLDEN[f"momentum.q.{key}"] for key in ("weight", "bias")})
    slow.load_state_dict({key: GOLDEN[f"momentum.k_before.{key}"] for key in ("weight", "bias")})
    momentum_update(slow, fast, 0.99)
    for key, value in slow.state_dict().items():
        torch.testing.assert_close(value, GOLDEN[f"momentum.k_after.{key}"])


def test_frozen_copy_starts_equal_and_stays_apart():
    fast = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    slow = freeze_copy(fast)
    assert not any(p.requires_grad for p in slow.parameters())
    with torch.no_grad():
        fast[0].weight += 1
    assert not torch.equal(slow[0].weight, fast[0].weight)
    momentum_update(slow, fast, 0.0)
    assert torch.equal(slow[0].weight, fast[0].weight)


def test_momentum_update_refuses():
    with pytest.raises(ValueError, match=r"got 1\.5"):
        momentum_update(nn.Linear(2, 2), nn.Linear(2, 2), 1.5)
    with pytest.raises(ValueError, match="bias"):
        momentum_update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)
