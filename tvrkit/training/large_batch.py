"""The gradient of a batch, of a large one in the memory of a small one."""

from dataclasses import replace

import torch
from torch import Tensor

from tvrkit.data.batch import ABSENT, TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.method import Method, Tensors, precision
from tvrkit.settings import TrainConfig
from tvrkit.training.distributed import gather
from tvrkit.training.guard import full_precision_loss


def gradient(method: Method, batch: TextVideoBatch, train: TrainConfig) -> tuple[Tensors, Tensor]:
    """`backward` as the recipe says: its precision, and chunks where the batch is larger."""
    with precision(train, batch.tokens.device):
        if train.chunk_size and len(batch) > train.chunk_size:
            return backward_in_chunks(method, batch, train.chunk_size)
        return backward(method, batch)


def backward(method: Method, batch: TextVideoBatch) -> tuple[Tensors, Tensor]:
    """Add the gradient of the loss on the rows of all processes to this process's parameters.

    Args:
        batch: the rows of this process.

    Returns:
        As `full_precision_loss`: the parts of the loss, and the broken rows.
    """
    return _loss_backward(method, method.encode_text(batch), method.encode_video(batch), batch)


def backward_in_chunks(method: Method, batch: TextVideoBatch, chunk: int) -> tuple[Tensors, Tensor]:
    """`backward` with the activations of `chunk` rows in memory at a time.

    Features are computed without gradient, the loss is taken on all of them, and each chunk is
    encoded again to carry its features' gradient into the encoder (GradCache, Gao et al. 2021). A
    chunk has a seed, so that dropout draws the same.
    """
    rows = [slice(start, start + chunk) for start in range(0, len(batch), chunk)]
    seeds, texts, videos = torch.randint(2**62, (len(rows),)).tolist(), [], []
    with torch.no_grad():
        for part, seed in zip(rows, seeds, strict=True):
            torch.manual_seed(seed)
            texts.append(method.encode_text(batch[part]))
            videos.append(method.encode_video(batch[part]))
    text, video = type(texts[0]).cat(texts), type(videos[0]).cat(videos)
    leaves = [tensor.requires_grad_() for tensor in _floats(text) + _floats(video)]
    result = _loss_backward(method, text, video, batch)
    for part, seed in zip(rows, seeds, strict=True):
        torch.manual_seed(seed)
        again = _floats(method.encode_text(batch[part])) + _floats(method.encode_video(batch[part]))
        gradients = [None if leaf.grad is None else leaf.grad[part] for leaf in leaves]
        pairs = zip(again, gradients, strict=True)
        reached = [pair for pair in pairs if pair[0].requires_grad and pair[1] is not None]
        torch.autograd.backward([tensor for tensor, _ in reached], [g for _, g in reached])
    return result


def _loss_backward(
    method: Method, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
) -> tuple[Tensors, Tensor]:
    rows = replace(batch, frames=ABSENT)  # no loss reads pixels: they need not travel
    parts, broken = full_precision_loss(method, gather(text), gather(video), gather(rows))
    parts["loss"].backward()
    return {name: value.detach() for name, value in parts.items()}, broken


def _floats(features) -> list[Tensor]:
    """Every floating-point tensor of one side, in the order of its fields."""
    tensors: list[Tensor] = []
    features.map(tensors.append)
    return [tensor for tensor in tensors if tensor.is_floating_point()]
