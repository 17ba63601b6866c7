"""CLIP4Clip (Luo et al., 2021): mean pooling or a temporal transformer over frame features. The
baseline."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.method import Method
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.settings import settings


@settings
class Settings:
    """CLIP4Clip's head.

    Attributes:
        head: "meanP", or "seqTransf" for a temporal transformer before the mean.
        layers: blocks of the temporal transformer.
    """

    head: Literal["meanP", "seqTransf"] = "seqTransf"
    layers: int = 4


class CLIP4Clip(Method):
    """One vector per text, one per video, cosine score."""

    Settings = Settings

    def __init__(self, backbone, settings: Settings):
        super().__init__(backbone, settings)
        temporal = settings.head == "seqTransf"
        self.temporal = (
            TemporalTransformer.from_clip(backbone, settings.layers) if temporal else None
        )

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Words and the sentence (EOT), as the backbone gives them."""
        words, sentence = self.backbone.encode_text(batch.tokens, batch.token_mask)
        return TextFeatures(sentence, words, batch.token_mask, batch.token_weight)

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """Frames f and the video v = nrm(mean over valid frames of nrm(y)), y = f or
        seqTransf(f)."""
        frames = self.backbone.encode_frames(batch.frames)
        seen = frames if self.temporal is None else self.temporal(frames, batch.frame_mask)
        valid = batch.frame_mask[..., None]
        mean = (normalize(seen, dim=-1) * valid).sum(dim=1) / valid.sum(dim=1)
        return VideoFeatures(normalize(mean, dim=-1), frames, batch.frame_mask)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(N_t, N_v) cosine of sentence and video."""
        return normalize(text.sentence.float(), dim=-1) @ video.video.float().T

    def loss(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
    ) -> dict[str, Tensor]:
        """Symmetric cross-entropy (CE(e^s S) + CE(e^s S^T)) / 2 of the scores S, s the logit
        scale."""
        scale = self.backbone.logit_scale.exp()
        scores = self.similarity(text, video)
        return {"loss": info_nce(scores, logit_scale=scale, positives=positives(batch.video_index))}

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Tensor]:
        """`frame_text` (B, F): cosine of each frame, before the head, with the sentence; 0 where
        padded."""
        sentence = normalize(text.sentence, dim=-1)[..., None]
        return {"frame_text": (normalize(video.frames, dim=-1) @ sentence)[..., 0] * video.mask}
