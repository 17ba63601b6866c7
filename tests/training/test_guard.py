"""The loss in float32, and the rows that broke it."""

import dataclasses
import re

import pytest
import torch

from tests.training.toy import Backbone, Toy, batch_of
from tvrkit.training.guard import check_finite, full_precision_loss
from tvrkit.training.large_batch import backward


def test_the_loss_is_in_float32_under_mixed_precision():
    seen = []

    class Watched(Toy):
        def loss(self, text, video, batch):
            seen.append(self.similarity(text, video).dtype)
            return super().loss(text, video, batch)

    batch = batch_of(range(4))
    method = Watched(Backbone(), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.encode_video(batch).frames.dtype == torch.bfloat16
        backward(method, batch)
    assert seen == [torch.float32]
    assert method.backbone.pixels.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("side", "videos", "captions"), [("video", [102], []), ("text", [], [202]), ("none", [], [])]
)
def test_a_loss_that_is_not_finite_names_the_rows(side, videos, captions):
    """By their indices in the split, and none where the loss alone is to blame."""
    method = Toy(Backbone(), None)
    batch = batch_of(range(4))
    batch = dataclasses.replace(
        batch, video_index=batch.video_index + 100, caption_index=batch.caption_index + 200
    )
    text, video = method.encode_text(batch), method.encode_video(batch)
    if side == "video":
        video.frames[2], video.video[2] = float("nan"), float("nan")
    elif side == "text":
        text.words[2], text.sentence[2] = float("inf"), float("inf")
    else:
        method.loss = lambda *_: {"loss": torch.tensor(float("inf"))}
    parts, broken = full_precision_loss(method, text, video, batch)
    numbers = {name: value.item() for name, value in parts.items()}
    named = f"rows {videos} {captions}" if videos or captions else "all features are finite"
    with pytest.raises(ValueError, match=f"^here: loss is not finite .*: {re.escape(named)}$"):
        check_finite(
            "here", numbers, broken, lambda *rows: "rows {} {}".format(*rows) if any(rows) else ""
        )
