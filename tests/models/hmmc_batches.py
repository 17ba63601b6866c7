"""HMMC over linear towers, and batches for it."""

import dataclasses

import torch

from tests.parity import LinearTowers
from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.hmmc import HMMC
from tvrkit.models.hmmc_pretraining import HMMCPretraining

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
WIDTH, VOCABULARY = 32, 60


def make_batch(rows=6, words=10, frames=4, seed=0, tags=False):
    random = torch.Generator().manual_seed(seed)
    token_mask = torch.arange(words) < torch.randint(3, words + 1, (rows, 1), generator=random)
    frame_mask = torch.arange(frames) < torch.randint(1, frames + 1, (rows, 1), generator=random)
    frame_mask[0, :2] = True
    tokens = torch.randint(VOCABULARY, (rows, words), generator=random)
    pixels = torch.randn(rows, frames, 3, 2, 2, generator=random)
    extras = {"tag_tokens": tokens.flip(0), "tag_mask": token_mask.flip(0)} if tags else {}
    order, words = torch.arange(rows), (tokens * token_mask, token_mask, token_mask.long())
    return TextVideoBatch(*words, pixels, frame_mask, order, order, extras)


def make(cls=HMMC, **changes):
    torch.manual_seed(1)
    small = {"temporal_layers": 1, "max_frames": 12}
    if cls is HMMCPretraining:
        queues = {"queue_size": 10, "frame_queue_size": 23}
        small |= {"projector_width": 16, "mask_share": 0.5, **queues}
    return cls(LinearTowers(WIDTH), cls.Settings(**(small | changes)))


def loss_of(method, batch):
    torch.manual_seed(2)
    return method.loss(method.encode_text(batch), method.encode_video(batch), batch)


def noisy(batch):
    """The same batch with other content, and more of it, in its padding."""
    pixels = torch.where(batch.frame_mask[:, :, None, None, None], batch.frames, torch.tensor(9.0))
    return dataclasses.replace(
        batch,
        frames=torch.cat([pixels, torch.randn_like(pixels)], dim=1),
        frame_mask=torch.cat([batch.frame_mask, torch.zeros_like(batch.frame_mask)], dim=1),
    )
