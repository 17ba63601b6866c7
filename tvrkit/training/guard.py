"""The loss in full precision, and which rows of a batch broke it where it is not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.method import Method


class NotFinite(ValueError):
    """A loss became NaN or infinite.

    Attributes:
        videos, captions: `video_index` and `caption_index` of the rows whose features are broken.
    """

    def __init__(self, message: str, videos: list[int], captions: list[int]):
        super().__init__(message)
        self.videos, self.captions = videos, captions


def full_precision_loss(
    method: Method, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
) -> dict[str, Tensor]:
    """The method's loss in float32, whatever precision the encoders ran in.

    Raises:
        NotFinite: the loss is not finite.
    """
    text, video = (
        side._map(lambda t: t.float() if t.is_floating_point() else t) for side in (text, video)
    )
    with torch.autocast(text.words.device.type, enabled=False):
        parts = method.loss(text, video, batch)
    if not torch.isfinite(parts["loss"]):
        values = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
        bad_videos = batch.video_index[_broken(video.frames)].tolist()
        bad_captions = batch.caption_index[_broken(text.words)].tolist()
        raise NotFinite(f"loss is not finite ({values})", bad_videos, bad_captions)
    return parts


def _broken(features: Tensor) -> Tensor:
    return ~torch.isfinite(features).flatten(1).all(1)
