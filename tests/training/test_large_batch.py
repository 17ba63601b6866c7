"""Gradients of a large batch, computed chunk by chunk."""

import pytest
import torch

from tests.training.toy import batch_of, trainer
from tvrkit.training.large_batch import backward_in_chunks


@pytest.mark.parametrize("chunk", [1, 4, 15])
def test_chunked_gradients_are_those_of_the_whole_batch(chunk):
    batch = batch_of(range(15))
    made = trainer()
    method = made.method.eval()  # dropout draws per call, so a comparison needs it off
    method.loss(method.encode_text(batch), method.encode_video(batch), batch)["loss"].backward()
    expected = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    backward_in_chunks(method, batch, chunk, torch.Tensor.backward)
    for p, gradient in zip(method.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_chunks_replay_dropout():
    """The gradient reaches exactly the embedding entries that dropout kept when the features were
    first made."""
    batch = batch_of(range(8))
    method = trainer().method.train()
    kept = []
    method.backbone.dropout.register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach() != 0)
    )
    backward_in_chunks(method, batch, 4, torch.Tensor.backward)
    first, again = kept[:2], kept[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not first[0].all()
