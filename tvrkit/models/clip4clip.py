"""CLIP4Clip (Luo et al., 2021): mean pooling or a temporal transformer over frame features. The
baseline."""

from typing import Literal

from pydantic import NonNegativeInt
from torch import Tensor
from torch.nn.functional import normalize

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.backbone import Backbone
from tvrkit.models.method import Method, Tensors
from tvrkit.models.temporal import TemporalTransformer, mean_frame
from tvrkit.settings import settings


@settings
class CLIP4ClipSettings:
    """CLIP4Clip's head.

    Attributes:
        head: "meanP", or "seqTransf" for a temporal transformer before the mean.
        layers: blocks of the temporal transformer.
        temporal_start: "clip" = its text positions and blocks, as released, or "normal" = positions
            N(0, 1). CLIP's have about a hundredth of the length of the frames that they are added
            to, so that no order is seen at the start.
        fidelity: "released" = captions of one video repel each other, as in the authors' code
            (finding 38); "corrected" = they do not.
    """

    head: Literal["meanP", "seqTransf"] = "seqTransf"
    layers: NonNegativeInt = 4
    temporal_start: Literal["clip", "normal"] = "clip"
    fidelity: Literal["released", "corrected"] = "corrected"


class CLIP4Clip(Method):
    """One vector per text, one per video, cosine score."""

    Settings, weighs_words = CLIP4ClipSettings, False

    def __init__(self, backbone: Backbone, settings: CLIP4ClipSettings):
        super().__init__(backbone, settings)
        self.temporal = None
        if settings.head == "seqTransf":
            clip = settings.temporal_start == "clip"
            start = TemporalTransformer.from_clip if clip else TemporalTransformer.beside_clip
            self.temporal = start(backbone, settings.layers)

    def video_features(self, frames: Tensor, mask: Tensor) -> VideoFeatures:
        """Frames f and the video v = nrm(mean over valid frames of nrm(y)), y = f or
        seqTransf(f)."""
        seen = frames if self.temporal is None else self.temporal(frames, mask)
        return VideoFeatures(normalize(mean_frame(seen, mask), dim=-1), frames, mask)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(N_t, N_v) cosine of sentence and video."""
        return normalize(text.sentence.float(), dim=-1) @ video.video.float().T

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> Tensors:
        """Symmetric cross-entropy (CE(e^s S) + CE(e^s S^T)) / 2 of the scores S, s the logit
        scale."""
        scores, scale = self.similarity(text, video), self.backbone.logit_scale.exp()
        same = positives(batch.video_index) if self.settings.fidelity == "corrected" else None
        return {"loss": info_nce(scores, logit_scale=scale, positives=same)}
