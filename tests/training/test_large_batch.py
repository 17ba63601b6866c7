"""Gradients of a large batch, computed chunk by chunk."""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.small_methods import make_backbone, make_batch
from tests.training.toy import batch_of, trainer
from tvrkit.losses import contrastive
from tvrkit.models import METHODS, similarity
from tvrkit.settings import TrainConfig
from tvrkit.training.large_batch import backward, backward_in_chunks, gradient


@pytest.mark.parametrize("chunk", [1, 4, 15])
def test_chunked_gradients_are_those_of_the_whole_batch(chunk):
    batch = batch_of(range(15))
    made = trainer()
    method = made.method.eval()  # dropout draws per call, so a comparison needs it off
    backward(method, batch)
    expected = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    backward_in_chunks(method, batch, chunk)
    for p, known in zip(method.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, known, rtol=1e-4, atol=1e-6)


# of the small CLIP's batches; dropout draws per chunk, so it is off
SIZES = {
    "clip4clip": {},
    "dmae": {"max_words": 10, "max_frames": 4},
    "glscl": {"feedforward": 16, "dropout": 0.0},
    "hmmc": {},
    "hmmc-pretrain": {
        "projector_width": 8,
        "queue_size": 5,
        "frame_queue_size": 7,
        "mask_share": 0.5,
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_in_chunks_the_gradient_and_the_buffers_of_the_whole_batch(name):
    """Also where modules see the batch as one: the projectors' BatchNorm in HMMC's pre-training.
    What is masked is drawn by item."""
    batch, found = make_batch(), []
    for chunk in (1, 2, None):
        backbone = make_backbone()
        method = METHODS[name](backbone, METHODS[name].Settings(**SIZES[name])).train()
        with torch.no_grad():  # the momentum encoders must differ from the trained ones
            method.backbone.clip.visual.proj += 0.1
        parts, _ = backward_in_chunks(method, batch, chunk) if chunk else backward(method, batch)
        gradients = {f"{key}'": p.grad for key, p in method.named_parameters() if p.requires_grad}
        found.append(parts | gradients | dict(method.named_buffers()))
    for other in found[:2]:
        torch.testing.assert_close(other, found[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_bf16_has_nearly_the_gradient_of_float32(name, chunk):
    """As recipes of real data sets train; eight bits of a number are 0.4 %."""
    batch, losses, gradients = make_batch(), [], []
    for precision in ("fp32", "bf16"):
        method = METHODS[name](make_backbone(), METHODS[name].Settings(**SIZES[name])).train()
        train = TrainConfig(precision=precision, chunk_size=chunk)
        losses.append(gradient(method, batch, train)[0]["loss"])
        found = [p.grad for p in method.parameters() if p.grad is not None]
        gradients.append(torch.cat([each.flatten() for each in found]))
    assert {each.dtype for each in (*losses, *gradients)} == {torch.float32}
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def test_chunks_replay_dropout():
    """The gradient reaches exactly the embedding entries that dropout kept when the features were
    first made."""
    batch = batch_of(range(8))
    method = trainer().method.train()
    kept = []
    method.backbone.dropout.register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach() != 0)
    )
    backward_in_chunks(method, batch, 4)
    first, again = kept[:2], kept[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not first[0].all()


READ = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for: numbers that are read, and shapes that depend on
    them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = "index" in name and isinstance(args[1], (list, tuple))
        by_mask = by_mask and any(at is not None and at.dtype == torch.bool for at in args[1])
        if name in READ or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_gpu_waits_for_nothing_and_computes_the_same(name, monkeypatch):
    """The GPU is faked: what may be read there is what the modules are told."""
    found = []
    for is_gpu in (False, True):
        for module in (similarity, contrastive):
            monkeypatch.setattr(module, "readable", lambda tensor, is_gpu=is_gpu: not is_gpu)
        method = METHODS[name](make_backbone(), METHODS[name].Settings(**SIZES[name])).train()
        with Waits() as waits:
            parts, broken = backward(method, make_batch())
            clip_grad_norm_(method.parameters(), 1.0)
        gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
        found.append(parts | gradients)
    assert waits.found == []
    assert not (broken >= 0).any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
