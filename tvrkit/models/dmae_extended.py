"""Two questions that the DMAE paper leaves open (Jiang et al., ACM MM 2023): does NegNCE gain from
more negatives than a batch holds, and from a mining margin that changes during training? With a
queue of 0 and a constant margin this is DMAE.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.dmae import DMAE
from tvrkit.models.dmae import Settings as DMAESettings
from tvrkit.models.momentum import FeatureQueue
from tvrkit.settings import settings


@settings
class Settings(DMAESettings):
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

    Settings = Settings

    def __init__(self, backbone: nn.Module, settings: Settings):
        super().__init__(backbone, settings)
        if settings.margin_steps < 1:
            raise ValueError(
                f"method.margin_steps: expected at least 1, got {settings.margin_steps}"
            )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.queue = (
            FeatureQueue(settings.queue, self._fields(backbone.width)) if settings.queue else None
        )

    def _fields(self, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        words, frames = self.settings.max_words, self.settings.max_frames
        of_text = {"sentence": ((width,), torch.float32), "words": ((words, width), torch.float32)}
        of_text |= {"word_mask": ((words,), torch.bool), "word_weight": ((words,), torch.float32)}
        of_video = {
            "frames": ((frames, width), torch.float32),
            "frame_mask": ((frames,), torch.bool),
        }
        of_video["frame_weight"] = ((frames,), torch.float32)
        if self.settings.second_frame:
            of_video |= {
                "second_gain": ((frames,), torch.float32),
                "second_frame": ((frames,), torch.int64),
            }
        return {**of_text, **of_video, "video_index": ((), torch.int64)}

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

    def contrast(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch, **options
    ) -> Tensor:
        """NegNCE over the batch and, in training, the queue as it is; then the batch is pushed.

        A queued pair of the same video as a row is none of its negatives.
        """
        options = {"margin": self.margin, **options}
        if self.queue is None or not self.training:
            return super().contrast(text, video, batch, **options)
        rows = self.queue.rows()
        if len(rows["video_index"]):
            same = batch.video_index[:, None] == rows["video_index"][None]
            to_videos = self.similarity(text, _video(rows))
            to_texts = self.similarity(_text(rows), video).T
            options["queued"] = (to_videos, to_texts, same)
        loss = super().contrast(text, video, batch, **options)
        self.queue.push(_rows(text, video, batch))
        return loss


def _rows(text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> dict[str, Tensor]:
    """What the similarity reads of B matched pairs, one row a pair."""
    of_text = {"sentence": text.sentence, "words": text.words, "word_mask": text.mask}
    of_video = {"frames": video.frames, "frame_mask": video.mask}
    return {**of_text, **text.extras, **of_video, **video.extras, "video_index": batch.video_index}


def _text(rows: dict[str, Tensor]) -> TextFeatures:
    mask = rows["word_mask"]  # the token weights are in word_weight already
    return TextFeatures(
        rows["sentence"], rows["words"], mask, mask.long(), {"word_weight": rows["word_weight"]}
    )


def _video(rows: dict[str, Tensor]) -> VideoFeatures:
    return VideoFeatures(None, rows["frames"], rows["frame_mask"], rows)
