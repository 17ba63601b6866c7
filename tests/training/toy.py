"""A method, a data set and a trainer small enough to step in microseconds."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.data.loader import EpochBatches
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.method import Method
from tvrkit.settings import TrainConfig
from tvrkit.training.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS = TrainConfig(epochs=3, batch_size=6, lr=1e-2, clip_lr=1e-2, workers=0)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.words = nn.Embedding(20, 8)
        self.dropout = nn.Dropout(0.2)
        self.pixels = nn.Linear(12, 8)

    def encode_frames(self, frames):
        return self.pixels(frames.float().flatten(2) / 255)


class Toy(Method):
    """A method with every moving part of a real one, small enough to step in microseconds."""

    def encode_text(self, batch):
        words = self.backbone.dropout(self.backbone.words(batch.tokens))
        return TextFeatures(words.mean(1), words, batch.token_mask, batch.token_mask.long())

    def video_features(self, frames, mask):
        return VideoFeatures(frames.mean(1), frames, mask)

    def similarity(self, text, video):
        return (
            nn.functional.normalize(text.sentence, dim=-1)
            @ nn.functional.normalize(video.video, dim=-1).T
        )

    def loss(self, text, video, batch):
        scale = self.backbone.logit_scale.exp()
        return {"loss": info_nce(self.similarity(text, video), logit_scale=scale)}


class Rows(Dataset):
    """Deterministic in (epoch, row)."""

    epoch = seed = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 18

    def __getitem__(self, item):
        epoch, row = item
        draw = torch.Generator().manual_seed(1000 * epoch + row)
        return (
            torch.randint(0, 20, (5,), generator=draw),
            torch.randint(0, 255, (3, 3, 2, 2), generator=draw),
            row,
        )


def collate(rows):
    tokens, frames, index = zip(*rows, strict=True)
    tokens, frames, index = (
        torch.stack(tokens),
        torch.stack(frames).to(torch.uint8),
        torch.tensor(index),
    )
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return TextVideoBatch(
        tokens,
        mask,
        mask.long(),
        frames,
        torch.ones(frames.shape[:2], dtype=torch.bool),
        index,
        index,
    )


def trainer(settings=SETTINGS, kind=Toy):
    torch.manual_seed(0)
    method = kind(Backbone(), None)
    rows = Rows()
    batches = EpochBatches(rows, settings.batch_size)
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=collate)
    return Trainer(
        method,
        loader,
        settings,
        CPU,
        lambda videos, captions: f"videos {videos}, captions {captions}",
    )


def batch_of(rows):
    """The rows of the first epoch."""
    return collate([Rows()[0, row] for row in rows])
