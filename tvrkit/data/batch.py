"""The protocol every data set, method and evaluation shares.

Shapes: B batch, N_t texts, N_v videos, L words, F frames, D width. Masks are bool, True = valid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ABSENT: Any = None  # a field that a one-sided batch lacks: no method reads it there
# of SplitMix64, as signed integers: its step, and the two rounds of its hash
GAMMA, MIXERS = -0x61C8864680B583EB, ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))


@dataclass
class _Tensors:
    """Dataclasses of tensors that share their first dimension; moved, indexed and joined field by
    field."""

    def __len__(self) -> int:
        return next(len(value) for value in vars(self).values() if value is not None)

    def map(self, function, *others):
        """`function` of each tensor, and of those in its place in `others`, which have the same
        fields present."""

        def apply(*values):
            if isinstance(values[0], dict):
                return {key: function(*(each[key] for each in values)) for key in values[0]}
            return None if values[0] is None else function(*values)

        sides = zip(*(vars(each).values() for each in (self, *others)), strict=True)
        return type(self)(*(apply(*values) for values in sides))

    def to(self, device: torch.device | str):
        """The same on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        """The same in page-locked memory, from which `to` copies to a GPU without waiting; the
        loaders call it."""
        return self.map(Tensor.pin_memory)

    def float(self):
        """The same in float32, whatever precision it was computed in."""
        return self.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def __getitem__(self, index):
        """The rows `index` (slice, or tensor of indices) of every field."""
        return self.map(lambda tensor: tensor[index])

    @classmethod
    def cat(cls, parts: Sequence[Any]):
        """Join along the first dimension. Every part has the same fields present."""
        return parts[0].map(lambda *tensors: torch.cat(tensors), *parts[1:])


@dataclass
class TextVideoBatch(_Tensors):
    """What a loader yields and a method reads. A one-sided batch (evaluation) has None on the other
    side.

    Attributes:
        tokens: (B, L) int64 token ids of the backbone's tokenizer, or None; or their features (B,
            1 + L, D) float, the sentence's first.
        token_mask: (B, L) bool, True on real tokens (SOT and EOT included).
        token_weight: (B, L) int64 in {0, 1, 2}: 0 padding, 2 noun/verb/adjective that is no stop
            word, else 1.
        frames: (B, F, 3, H, W) uint8, normalised by the backbone on the device; float32 counts as
            normalised; or their features (B, F, D) float.
        frame_mask: (B, F) bool, True on real frames.
        video_index: (B,) int64 row of the video in the split. Equal indices are positives of each
            other.
        caption_index: (B,) int64 row of the caption in the split.
        extras: further tensors of one method, first dimension B: a second text, "tag_tokens" and
            "tag_mask" (B, L).
        seed: (B,) int64, of what a method draws for the row in training, see `uniform`; a training
            batch has it.
    """

    tokens: Tensor = ABSENT
    token_mask: Tensor = ABSENT
    token_weight: Tensor = ABSENT
    frames: Tensor = ABSENT
    frame_mask: Tensor = ABSENT
    video_index: Tensor = ABSENT
    caption_index: Tensor = ABSENT
    extras: dict[str, Tensor] = field(default_factory=dict)
    seed: Tensor = ABSENT


@dataclass
class TextFeatures(_Tensors):
    """One side of the similarity: everything that depends on the texts only.

    Attributes:
        sentence: (N_t, D) float, the EOT token after projection, not normalised.
        words: (N_t, L, D) float, all tokens after `ln_final` and projection, not normalised.
        mask: (N_t, L) bool.
        weight: (N_t, L) int64 in {0, 1, 2}, see `TextVideoBatch.token_weight`.
        extras: what the method computes once per text (concepts, token weights), first dimension
            N_t.
    """

    sentence: Tensor
    words: Tensor
    mask: Tensor
    weight: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class VideoFeatures(_Tensors):
    """The other side: everything that depends on the videos only.

    Attributes:
        video: (N_v, D) float, one vector per video where the method has one, else None.
        frames: (N_v, F, D) float, not normalised unless the method says so.
        mask: (N_v, F) bool.
        extras: what the method computes once per video (concepts, Gram matrices), first dimension
            N_v.
    """

    video: Any
    frames: Tensor
    mask: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


def pieces(items: Any, size: int) -> list[Any]:
    """Consecutive slices of `size` items; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def uniform(seed: Tensor, *shape: int) -> Tensor:
    """(B, *shape) float32 in [0, 1) on the device of `seed`: row b depends on seed[b] alone, not on
    the batch, the device or the number of processes.

    SplitMix64 (Steele, Lea and Flood, 2014): a hash of seed + position * gamma.

    Args:
        seed: (B,) int64.
    """
    x = seed[:, None] + torch.arange(math.prod(shape), device=seed.device) * GAMMA
    for shift, factor in MIXERS:
        x = (x ^ (x >> shift & 2 ** (64 - shift) - 1)) * factor  # int64 wraps; >> copies the sign
    return ((x >> 40) & 0xFFFFFF).float().div(1 << 24).view(len(seed), *shape)


def inner_words(mask: Tensor) -> Tensor:
    """(B, L) bool: the words in `mask` (B, L) bool, True first, less each text's start and end
    token."""
    inner = mask.clone()
    inner[:, 0] = inner[torch.arange(len(mask)), mask.sum(dim=1) - 1] = False
    return inner


def readable(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at for nothing: on a GPU that waits for all it has to do,
    so a training step there looks at none."""
    return not tensor.is_cuda


def positives(video_index: Tensor) -> Tensor:
    """(B, B) bool, True where text i and video j show the same video.

    Two captions of one video in a batch are never each other's negatives.

    Args:
        video_index: (B,) int64.
    """
    return video_index[:, None] == video_index[None, :]
