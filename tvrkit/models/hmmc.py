"""HMMC: "End-to-End Pre-Training With Hierarchical Matching and Momentum Contrast for Text-Video
Retrieval" (Shen et al., IEEE TIP 2023): fine-tuning, and the score.

Video and text match at two levels: the video as a whole (VTM) and each of its frames (FTM).
Fine-tuning contrasts within the batch; pre-training is in `hmmc_pretraining`.
"""

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import info_nce
from tvrkit.losses.momentum import frame_matching
from tvrkit.models.backbone import Backbone
from tvrkit.models.method import RELEASED_SCALE, Method, Tensors
from tvrkit.models.similarity import topk_frame_similarity
from tvrkit.models.temporal import TemporalTransformer, mean_frame
from tvrkit.settings import settings


@settings
class EncoderSettings:
    """What pre-training and fine-tuning share, so that one starts from the other's weights.

    Attributes:
        temporal_layers: blocks of the temporal transformer.
        temporal_heads: its attention heads (released: 8); None = as CLIP's text tower.
        max_frames: positions of the temporal transformer.
        top_frames: k, the best frames that count in the score.
        fidelity: "released" = the numbers of the released code, "corrected" = findings 22, 23, 31
            and 38 repaired.
    """

    temporal_layers: NonNegativeInt = 4
    temporal_heads: PositiveInt | None = None
    max_frames: PositiveInt = 48
    top_frames: PositiveInt = 2
    fidelity: Literal["released", "corrected"] = "corrected"


@settings
class HMMCSettings(EncoderSettings):
    """Fine-tuning.

    Attributes:
        video_weight: of VTM.
        frame_weight: of FTM.
    """

    video_weight: NonNegativeFloat = 0.85
    frame_weight: NonNegativeFloat = 0.15


class HMMC(Method):
    """Fine-tuning, and the score of both."""

    Settings: ClassVar[type] = HMMCSettings
    weighs_words = False

    def __init__(self, backbone: Backbone, settings: EncoderSettings):
        super().__init__(backbone, settings)
        self.corrected = settings.fidelity == "corrected"
        sizes = (settings.temporal_layers, settings.max_frames, settings.temporal_heads)
        start = TemporalTransformer.from_clip if self.corrected else TemporalTransformer.beside_clip
        self.temporal: nn.Module = start(backbone, *sizes)
        if not self.corrected:
            backbone.logit_scale.requires_grad_(False)

    def video_features(self, frames: Tensor, mask: Tensor) -> VideoFeatures:
        """CLIP's frames f, and the video: mean over (valid) frames of nrm(seqTransf(f))."""
        counted = self.counted(mask)
        return VideoFeatures(mean_frame(self.temporal(frames, counted), counted), frames, mask)

    def counted(self, mask: Tensor) -> Tensor:
        """(B, F) bool, the frames that count: in released code padded ones too (finding 22)."""
        return mask if self.corrected else torch.ones_like(mask)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Cosine with the video, plus the mean cosine with its `top_frames` best frames."""
        mask, k = self.counted(video.mask), self.settings.top_frames
        by_frame = topk_frame_similarity(text.sentence, video.frames, mask, k=k)
        return cosine(text.sentence, video.video) + by_frame

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """video_weight VTM + frame_weight FTM, each the sum of both directions' cross entropies."""
        same = positives(batch.video_index) if self.corrected else None  # finding 38
        mask = self.counted(video.mask)
        scale = self.backbone.logit_scale.exp() if self.corrected else RELEASED_SCALE
        sentence, frames = F.normalize(text.sentence, dim=-1), F.normalize(video.frames, dim=-1)
        by_frame = torch.einsum("ad,bfd->abf", sentence, frames)
        by_video = cosine(text.sentence, video.video)
        vtm = 2 * info_nce(by_video, logit_scale=scale, positives=same)
        ftm = frame_matching(by_frame, mask, logit_scale=scale, positives=same)
        loss = self.settings.video_weight * vtm + self.settings.frame_weight * ftm
        return {"loss": loss, "vtm": vtm, "ftm": ftm}

    def own_signs(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Standard deviation of the cosines of a caption and its video's frames: of equal ones no
        best can be chosen."""
        scores = torch.cosine_similarity(video.frames, text.sentence[:, None], dim=-1)
        mean = (scores * video.mask).sum(1, keepdim=True) / video.mask.sum(1, keepdim=True)
        return {"spread of frame scores": ((scores - mean)[video.mask]).square().mean().sqrt()}

    @torch.no_grad()
    def explain(self, text: TextFeatures, video: VideoFeatures) -> Tensors:
        """What the score looks at, for B matched pairs.

        Returns:
            `frame_text` (B, F): cosine of each frame with the sentence, 0 where padded;
            `frame_counted` (B, F) bool: the best frames that count in the score.
        """
        maps = super().explain(text, video)
        ranked = maps["frame_text"].masked_fill(~video.mask, -torch.inf)
        best = ranked.topk(min(self.settings.top_frames, ranked.shape[1]), dim=1).indices
        counted = torch.zeros_like(video.mask).scatter(1, best, True) & video.mask
        return maps | {"frame_counted": counted}


def cosine(text: Tensor, video: Tensor) -> Tensor:
    """(N_t, N_v) cosine of texts (N_t, D) and videos (N_v, D)."""
    return F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
