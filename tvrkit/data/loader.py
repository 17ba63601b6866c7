"""Batches: captions drawn and tokenised, frames sampled from the store.

Whatever is random about an item comes from (seed, epoch, item): neither the number of worker
processes nor a resumed run changes a batch.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tvrkit.data import processes
from tvrkit.data.augmentation import AUGMENTATIONS
from tvrkit.data.batch import TextVideoBatch, pieces
from tvrkit.data.features import Features, padded
from tvrkit.data.manifest import Split
from tvrkit.data.preprocessing import Preprocessing
from tvrkit.data.sampling import SAMPLERS, sample
from tvrkit.data.text import KeywordMasker, Tagger, tokenise
from tvrkit.files import expect
from tvrkit.settings import Config, DataConfig, choose

tagger = cache(Tagger)  # one per language and process: it remembers what it has tagged


class Clips:
    """Reads clips of a split's videos; as a data set, batches of them in evaluation.

    Args:
        split: whose videos they are.
        data: of the recipe.
        how: the preprocessing of the backbone's weights.
        sampling: name, see `tvrkit.data.sampling.sample`.
        augment: a key of `AUGMENTATIONS`, where the clips are to be changed.

    Attributes:
        length: F, frames of a clip, `max_frames` or what the longest video has; one with fewer is
            padded.
        features: in place of the frames.
    """

    def __init__(
        self, split: Split, data: DataConfig, how: Preprocessing, sampling: str, augment: Any = ""
    ):
        self.split, self.preprocessing, self.augment = split, how, augment
        self.length = min(data.max_frames, max(split.frame_counts))
        self.sampling = choose("sampling", sampling, SAMPLERS)
        self.features = _features(split, data)

    def __len__(self) -> int:
        return len(self.split.video_ids)

    def __getitems__(self, rows: Sequence[int]) -> TextVideoBatch:
        frames, mask = self.read(rows, [None] * len(rows))
        return TextVideoBatch(frames=frames, frame_mask=mask, video_index=torch.tensor(rows))

    def read(
        self, rows: Sequence[int] | np.ndarray, draws: Sequence[np.random.Generator | None]
    ) -> tuple[Tensor, Tensor]:
        """Clips of the videos `rows`, each with its own random draw.

        Returns:
            frames (B, F, 3, S, S) uint8, or their features (B, F, D) float; mask (B, F) bool.
        """
        clips = [self._clip(int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        if self.features is not None:
            return padded(clips, self.length)
        # the colours of a pixel stay together, as in the file: nothing is turned over in copying
        frames, mask = padded([clip.permute(0, 2, 3, 1) for clip in clips], self.length)
        return frames.permute(0, 1, 4, 2, 3), mask

    def _clip(self, row: int, draw: np.random.Generator | None) -> Tensor:
        indices = sample(self.sampling, self.split.frame_counts[row], self.length, draw)
        if self.features is not None:
            return self.features.item("videos", row)[indices]
        images = self.split.frames.read(self.split.video_ids[row], indices)
        clip = torch.from_numpy(images).permute(0, 3, 1, 2)
        if draw is not None and self.augment:
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
                torch.default_generator.manual_seed(int(draw.integers(2**63)))
                clip = AUGMENTATIONS[self.augment](clip, self.preprocessing.size)
        return self.preprocessing.fit(clip)


def _features(split: Split, data: DataConfig) -> Features | None:
    return None if data.features is None else Features(data.features, split.name)


def tags(split: Split) -> list[str]:
    """A second text for each caption of the split: its video's tags, the column `tags`, or the
    caption itself where those are empty.

    Raises:
        ValueError: the data set has none.
    """
    captions, where = split.captions, f"data.captions, of {split.root.name}"
    expected = "'one' or 'all', or a data set prepared with a column `tags`"
    expect("tags" in captions, where, expected, "'tagged'")
    return captions["tags"].where(captions["tags"] != "", captions["caption"]).tolist()


class TrainData(Dataset):
    """Training items: a video with a random one of its captions (and its tags), or each caption
    with its video.

    The loader asks for whole batches of (epoch, item), see `EpochBatches`.
    """

    def __init__(self, split: Split, config: Config, backbone, seed: int, tagged: bool):
        data, self.tokenizer = config.data, backbone.tokenizer
        self.split, self.data, self.seed, self.epoch = split, data, seed, 0
        changed = data.train_sampling, data.augmentation
        self.clips = Clips(split, data, backbone.preprocessing, *changed)
        self.captions = split.captions["caption"].tolist()
        self.texts = _texts(split, data, self.tokenizer, tagged)
        if data.captions == "tagged":
            tokens, mask, _ = tokenise(tags(split), self.tokenizer, data.max_words)
            self.texts.extras = {"tag_tokens": tokens, "tag_mask": mask}
        self.captions_of_video = split.captions.groupby(split.video_of_caption).indices
        self.masker = None
        if data.keyword_masking:
            self.captions = [self.tokenizer.clean_fn(caption) for caption in self.captions]
            texts = pd.Series(self.captions).groupby(split.captions["video_id"].values).agg(list)
            self.masker = KeywordMasker(texts.to_dict(), data.language)
            words = tagger(data.language) if tagged else None
            self.content_spans = words.content_spans if words else lambda caption: []

    def set_epoch(self, epoch: int) -> None:
        """What the next iteration over the loader draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.captions if self.data.captions == "all" else self.split.video_ids)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> TextVideoBatch:
        draws = [np.random.default_rng([self.seed, epoch, item]) for epoch, item in items]
        captions = [self._caption(item, draw) for (_, item), draw in zip(items, draws, strict=True)]
        batch = self.texts[torch.tensor(captions)]
        videos = self.split.video_of_caption[captions]
        if self.clips.features is not None:
            batch.tokens = self.clips.features.texts(captions, self.data.max_words)
        if self.masker is not None:
            texts, content = [self.captions[row] for row in captions], self.content_spans
            masked = [
                self.masker.mask(self.split.video_ids[video], text, draw, content(text))
                for video, text, draw in zip(videos, texts, draws, strict=True)
            ]
            sentences, spans = zip(*masked, strict=True)
            text = tokenise(sentences, self.tokenizer, self.data.max_words, content=spans)
            batch.tokens, batch.token_mask, batch.token_weight = text
        batch.frames, batch.frame_mask = self.clips.read(videos, draws)
        batch.seed = torch.tensor([int(draw.integers(2**63)) for draw in draws])
        return batch

    def _caption(self, item: int, draw: np.random.Generator) -> int:
        if self.data.captions == "all":
            return item
        return int(draw.choice(self.captions_of_video[item]))


class EpochBatches(Sampler):
    """Batches of (epoch, item) in the epoch's own random order; of several processes, each gets its
    own rows of every batch, so that all of them together, by rank, make that of one process.

    A last batch that is not full is dropped, unless it is the only one. Workers learn the epoch
    from what they are asked for.

    Args:
        data: its length, `epoch` and `seed` are read.
        batch_size: of all processes together.

    Attributes:
        first: step of the epoch that the next iteration starts with.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """

    def __init__(self, data: Any, batch_size: int):
        self.data, self.size, self.first = data, min(batch_size, len(data)), 0
        alike, rows = self.size % processes.count() == 0, f"rows for {processes.count()} processes"
        expect(alike, "train.batch_size", f"{rows} alike", f"a batch of {self.size}")

    def __len__(self) -> int:
        return len(self.data) // self.size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, own = self.data.epoch, self.size // processes.count()
        order = np.random.default_rng([self.data.seed, epoch]).permutation(len(self.data))
        for step in range(self.first, len(self)):
            start = step * self.size + processes.rank() * own
            yield [(epoch, int(item)) for item in order[start : start + own]]


def train_loader(
    split: Split, config: Config, backbone, *, seed: int, tagged: bool = True
) -> DataLoader:
    """Batches of the training split, in another order each epoch
    (`loader.dataset.set_epoch(epoch)`), see `EpochBatches`.

    Where `tagged` is False no word is told from another: every real token weighs 1.

    Raises:
        ValueError: unknown sampling, or tags are asked of a data set without.
    """
    data = TrainData(split, config, backbone, seed, tagged)
    return _load(data, config, EpochBatches(data, config.train.batch_size))


def video_loader(split: Split, config: Config, backbone) -> DataLoader:
    """Batches of a split's videos in order: frames, frame_mask, video_index. Of several processes,
    each gets its own, see `processes.collect`."""
    clips = Clips(split, config.data, backbone.preprocessing, config.data.eval_sampling)
    return _load(clips, config, _own_batches(len(clips), config))


def text_loader(split: Split, config: Config, backbone, tagged: bool = True) -> DataLoader:
    """Batches of a split's captions in order: tokens, token_mask, token_weight, video_index,
    caption_index. Shared out as of `video_loader`; `tagged` as of `train_loader`."""
    texts: Any = _texts(split, config.data, backbone.tokenizer, tagged)
    batches, features = _own_batches(len(texts), config), _features(split, config.data)

    def finish(batch: Any) -> TextVideoBatch:
        if features is not None:
            batch.tokens = features.texts(batch.caption_index, config.data.max_words)
        return batch

    return DataLoader(texts, batch_size=None, sampler=batches, collate_fn=finish)


def _own_batches(count: int, config: Config) -> list[list[int]]:
    """The rows of every n-th batch, n the number of processes; alone, of all."""
    batches = pieces(list(range(count)), config.eval.batch_size)
    return batches[processes.rank() :: processes.count()]


def _texts(split: Split, data: DataConfig, tokenizer, tagged: bool) -> TextVideoBatch:
    """The text side of every caption of a split."""
    captions, words = split.captions["caption"].tolist(), tagger(data.language) if tagged else None
    tokens, mask, weight = tokenise(captions, tokenizer, data.max_words, words)
    videos, captions = torch.from_numpy(split.video_of_caption), torch.arange(len(tokens))
    return TextVideoBatch(tokens, mask, weight, video_index=videos, caption_index=captions)


def _load(data: Any, config: Config, batches: Any) -> DataLoader:
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=config.train.workers,
        # forked: started otherwise, they would run a user's script again
        multiprocessing_context="fork" if config.train.workers else None,
        persistent_workers=config.train.workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_whole,
    )


def _whole(batch: Any) -> TextVideoBatch:
    return batch  # `__getitems__` has made it
