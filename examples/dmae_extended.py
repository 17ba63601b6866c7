"""Two questions that the DMAE paper leaves open (Jiang et al., ACM MM 2023): does NegNCE gain from
more negatives than a batch holds, and from a mining margin that changes during training?

A method of one's own that builds on a method of the kit. In a recipe:

    method: {name: "examples.dmae_extended:ExtendedDMAE", queue: 512}

With a queue of 0 and a constant margin this is DMAE.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import candidate_logits, neg_nce_terms
from tvrkit.losses.miners import margin_negatives
from tvrkit.models.backbone import Backbone
from tvrkit.models.dmae import DMAE, RELEASED_CLAMP, RELEASED_SCALE, DMAESettings
from tvrkit.settings import settings


@settings
class ExtendedSettings(DMAESettings):
    """DMAE's choices, and those of the two questions.

    Attributes:
        queue: K, the last matched pairs of earlier batches that are further candidates in training;
            0 = none.
        final_margin: what `mining_margin` has become after `margin_steps`; None = it stays.
        margin_steps: training steps of the linear change.
    """

    queue: int = 0
    final_margin: float | None = None
    margin_steps: int = 100


class ExtendedDMAE(DMAE):
    """DMAE whose NegNCE sees a queue and a moving margin. The score, and so the evaluation, is
    DMAE's.

    Attributes:
        step: () int64 buffer, training steps begun; saved with the weights, as the queue is.
    """

    Settings = ExtendedSettings

    def __init__(self, backbone: Backbone, settings: ExtendedSettings):
        super().__init__(backbone, settings)
        if settings.margin_steps < 1:
            raise ValueError(
                f"method.margin_steps: expected at least 1, got {settings.margin_steps}"
            )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.queue = FeatureQueue(settings.queue, self._fields()) if settings.queue else None

    def _fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        words, frames = self.settings.max_words, self.settings.max_frames
        width, real = self.backbone.width, torch.float32
        text = {"sentence": ((width,), real), "words": ((words, width), real)}
        text |= {"word_mask": ((words,), torch.bool), "word_weight": ((words,), real)}
        video = {"frames": ((frames, width), real), "frame_mask": ((frames,), torch.bool)}
        video["frame_weight"] = ((frames,), real)
        if self.settings.second_frame:
            video |= {"second_gain": ((frames,), real), "second_frame": ((frames,), torch.int64)}
        return {**text, **video, "video_index": ((), torch.int64)}

    def before_step(self) -> None:
        """Count the step: the margin follows it."""
        self.step.add_(1)

    @property
    def margin(self) -> float:
        """The mining margin of the current step: m + (m' - m) min(1, steps before it /
        margin_steps)."""
        start, steps = self.settings.mining_margin, self.settings.margin_steps
        end = start if self.settings.final_margin is None else self.settings.final_margin
        return start + (end - start) * min(max(int(self.step) - 1, 0) / steps, 1.0)

    def contrast(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensor:
        """NegNCE over the batch and, in training, the queue as it is; then the batch is pushed.

        A queued pair joins the softmax, and H where it scores above the best match of its row less
        the margin; one of the same video as the row is none of its negatives.
        """
        own = batch.video_index if self.corrected else batch.caption_index  # finding 38
        same, is_queued = positives(own), self.queue is not None and self.training
        rows = self.queue.rows() if is_queued else {"video_index": batch.video_index[:0]}
        known = batch.video_index[:, None] == rows["video_index"][None]
        queued = (known.float(), known.float())
        if known.shape[1]:
            to_videos = self.similarity(text, _video(rows))
            queued = (to_videos, self.similarity(_text(rows), video).T)
        scores = self.similarity(text, video)
        scale = self.backbone.logit_scale.exp() if self.corrected else RELEASED_SCALE
        mined, total = margin_negatives(scores, same, margin=self.margin), scores.new_zeros(())
        directions = ((scores, same, mined, queued[0]), (scores.T, same.T, mined.T, queued[1]))
        for direction in directions:
            attraction, repulsion = self._terms(*direction, known, scale)
            total = total + attraction + self.settings.negative_weight * repulsion
        if is_queued:
            self.queue.push(_rows(text, video, batch))
        return total / 2

    def _terms(self, scores, same, mined, queued, known, scale) -> tuple[Tensor, Tensor]:
        logits = candidate_logits(scores, same, scale)
        logits = torch.cat([logits, (scale * queued).masked_fill(known, -torch.inf)], dim=1)
        best = scores.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)
        negatives = torch.cat([mined, (queued > best - self.margin) & ~known], dim=1)
        return neg_nce_terms(logits, negatives, None if self.corrected else RELEASED_CLAMP)


class FeatureQueue(nn.Module):
    """The last `size` rows of several tensors, as they are, in one ring buffer; empty at first.

    Args:
        size: number of rows kept, at least 1.
        fields: name -> shape and dtype of one row.

    Attributes:
        pushed: () int64 buffer, rows pushed so far. It and the rows are saved with the weights.
    """

    def __init__(self, size: int, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]]):
        super().__init__()
        if size < 1:
            raise ValueError(f"queue size: expected at least 1, got {size}")
        self.size, self.fields = size, list(fields)
        for name, (shape, dtype) in fields.items():
            self.register_buffer(name, torch.zeros(size, *shape, dtype=dtype))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def rows(self) -> dict[str, Tensor]:
        """Copies (K, ...) of the rows that are filled: a push before the backward pass leaves them
        as they are."""
        filled = min(int(self.pushed), self.size)
        return {name: self.get_buffer(name)[:filled].clone() for name in self.fields}

    @torch.no_grad()
    def push(self, new: Mapping[str, Tensor]) -> None:
        """Overwrite the oldest rows by `new`, name -> (N, ...), of any N; only the last `size`
        stay.

        Raises:
            ValueError: a tensor is not N rows of its field's shape; nothing is pushed then.
        """
        count = len(next(iter(new.values())))
        for name in self.fields:
            expected, shape = (count, *self.get_buffer(name).shape[1:]), tuple(new[name].shape)
            if shape != expected:
                raise ValueError(f"queue, {name}: expected shape {expected}, got {shape}")
        rows = torch.arange(count, device=self.pushed.device)[-self.size :]
        slots = (self.pushed + rows) % self.size
        for name in self.fields:
            buffer = self.get_buffer(name)
            buffer[slots] = new[name][rows].to(buffer.dtype)
        self.pushed.add_(count)


def _rows(text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> dict[str, Tensor]:
    """What the similarity reads of B matched pairs, one row a pair."""
    texts = {"sentence": text.sentence, "words": text.words, "word_mask": text.mask, **text.extras}
    videos = {"frames": video.frames, "frame_mask": video.mask, **video.extras}
    return {**texts, **videos, "video_index": batch.video_index}


def _text(rows: dict[str, Tensor]) -> TextFeatures:
    mask = rows["word_mask"]  # the token weights are in word_weight already
    extras = {"word_weight": rows["word_weight"]}
    return TextFeatures(rows["sentence"], rows["words"], mask, mask.long(), extras)


def _video(rows: dict[str, Tensor]) -> VideoFeatures:
    return VideoFeatures(None, rows["frames"], rows["frame_mask"], rows)
