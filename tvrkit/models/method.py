"""What every text-video retrieval method does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.backbone import Backbone
from tvrkit.settings import TrainConfig

Tensors = dict[str, Tensor]  # by name
RELEASED_SCALE = 100.0  # constant factor on the scores in DMAE's and HMMC's released losses (23)


@contextmanager
def precision(train: TrainConfig, device: torch.device | str) -> Iterator[None]:
    """What is computed within it has the precision that `train.precision` names."""
    before, half = torch.get_float32_matmul_precision(), train.precision == "bf16"
    torch.set_float32_matmul_precision("highest" if train.precision == "fp32" else "high")
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Method(nn.Module):
    """A text-video retrieval method: a backbone, what the paper adds to it, its score and its loss.

    Subclasses set `Settings`, a frozen pydantic dataclass that the recipe's `method` section (less
    `name`) is read into, and keep every parameter of the pre-trained model under `self.backbone`:
    optimiser groups rely on that.
    """

    Settings: ClassVar[type]
    backbone: Backbone
    weighs_words: bool = True  # reads `token_weight`; captions are tagged for it, which takes time

    def __init__(self, backbone: Backbone, settings: Any):
        super().__init__()
        self.backbone, self.settings = backbone, settings

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Everything that depends on the texts only, once: words and the sentence (EOT), as the
        backbone gives them."""
        words, sentence = self.backbone.encode_text(batch.tokens, batch.token_mask)
        return TextFeatures(sentence, words, batch.token_mask, batch.token_weight)

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """Everything that depends on the videos only, once."""
        return self.video_features(self.backbone.encode_frames(batch.frames), batch.frame_mask)

    def video_features(self, frames: Tensor, mask: Tensor) -> VideoFeatures:
        """What `encode_video` makes of the backbone's frames.

        Args:
            frames: (B, F, D) float of `backbone.encode_frames`.
            mask: (B, F) bool, True on real frames.
        """
        raise NotImplementedError

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(N_t, N_v) float32 scores on the cosine scale, no temperature, the same in training and
        evaluation."""
        raise NotImplementedError

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Scalar `"loss"` and its named parts, on B matched pairs (row i of both sides belongs
        together)."""
        raise NotImplementedError

    def before_step(self) -> None:
        """What happens before each training step (a momentum update); nothing in most methods."""

    @torch.no_grad()
    def signs(self, batch: TextVideoBatch) -> dict[str, float]:
        """What shows that each part is alive, on B matched pairs: sign -> number.

        Every method has "change by reversed frames": how far a matched score moves when the frames
        come in the other order, in standard deviations of all scores; 0 for a mean over frames. The
        others are its `own_signs`. `tvrkit.reporting.signs` says from where on a part is
        dead.
        """
        text, video = self.encode_text(batch), self.encode_video(batch)
        rows, place = (torch.arange(n, device=batch.frames.device) for n in batch.frames.shape[:2])
        last = batch.frame_mask.sum(1, keepdim=True) - 1
        order = torch.where(batch.frame_mask, last - place, place)
        backwards = replace(batch, frames=batch.frames[rows[:, None], order])
        scores = self.similarity(text, video)
        turned = self.similarity(text, self.encode_video(backwards))
        moved = (scores - turned).diagonal().abs().mean()
        signs = {"change by reversed frames": moved / scores.std()}
        signs |= self.own_signs(text, video, batch)
        return {name: float(value) for name, value in signs.items()}

    def own_signs(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Signs of a method's own parts; none in methods that have none."""
        return {}

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> Tensors:
        """Named attention tensors of B matched pairs, without gradient.

        Returns:
            `frame_text` (B, F): cosine of each of `video.frames` with the sentence, 0 where padded.
        """
        sentence = normalize(text.sentence, dim=-1)[..., None]
        return {"frame_text": (normalize(video.frames, dim=-1) @ sentence)[..., 0] * video.mask}
