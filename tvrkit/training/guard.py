"""The loss in full precision, and which rows of a batch broke it where it is not finite."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.method import Method, Tensors


def full_precision_loss(
    method: Method, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
) -> tuple[Tensors, Tensor]:
    """The method's loss in float32, whatever precision the encoders ran in.

    Returns:
        The loss and its parts, and the broken rows (2, B) int64: `video_index` of those with a
        frame that is not finite, `caption_index` of those with such a word, else -1. Neither waits
        for the device; `check_finite` reads them.
    """
    text, video = text.float(), video.float()
    with torch.autocast(text.words.device.type, enabled=False):
        parts = method.loss(text, video, batch)
    broken = torch.stack([~t.isfinite().flatten(1).all(1) for t in (video.frames, text.words)])
    return parts, torch.stack([batch.video_index, batch.caption_index]).where(broken, -1)


def check_finite(
    where: str, parts: dict[str, float], broken: Tensor, name_rows: Callable[..., str]
) -> None:
    """Refuse a loss that is not finite.

    Args:
        where: it was taken, for the error.
        parts: "loss" and its parts, as numbers.
        broken: of `full_precision_loss`.
        name_rows: names the broken rows by lists of their `video_index` and `caption_index`.

    Raises:
        ValueError: the loss is not finite.
    """
    if not math.isfinite(parts["loss"]):
        values = ", ".join(f"{name} {value:g}" for name, value in parts.items())
        named = name_rows(*([row for row in side if row >= 0] for side in broken.tolist()))
        named = named or "all features are finite"
        raise ValueError(f"{where}: loss is not finite ({values}): {named}")
