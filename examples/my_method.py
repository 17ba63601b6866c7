"""A method of one's own: a learned weight for each frame, cosine score, InfoNCE.

tvrkit train examples/my_method.yaml --run mine
"""

from torch import Tensor, nn
from torch.nn.functional import normalize

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures, positives
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.method import Method
from tvrkit.settings import settings


@settings
class MySettings:
    """What a recipe may set under `method`; an unknown key or a wrong type is an error.

    Attributes:
        sharpness: factor on the frames' logits; 0 = mean pooling.
    """

    sharpness: float = 1.0


class MyMethod(Method):
    """v = nrm(sum_f w_f nrm(f)),  w = softmax over valid frames of sharpness (a . nrm(f))."""

    Settings = MySettings

    def __init__(self, backbone, settings: MySettings):
        super().__init__(backbone, settings)
        self.weigh = nn.Linear(backbone.width, 1, bias=False)

    def video_features(self, frames: Tensor, mask: Tensor) -> VideoFeatures:
        """The video (B, D), and `extras["frame_weight"]` (B, F)."""
        frames = normalize(frames, dim=-1)
        logits = self.settings.sharpness * self.weigh(frames)[..., 0]
        weight = logits.masked_fill(~mask, float("-inf")).softmax(dim=1)
        video = normalize((weight[..., None] * frames).sum(dim=1), dim=-1)
        return VideoFeatures(video, frames, mask, {"frame_weight": weight})

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(N_t, N_v) cosine."""
        return normalize(text.sentence, dim=-1) @ video.video.T

    def loss(self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch) -> dict:
        """Symmetric InfoNCE."""
        scores, scale = self.similarity(text, video), self.backbone.logit_scale.exp()
        return {"loss": info_nce(scores, logit_scale=scale, positives=positives(batch.video_index))}

    def explain(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Tensor]:
        """`frame_weight` (B, F), and the frames' cosines with the sentence."""
        weight = video.extras["frame_weight"].detach()
        return super().explain(text, video) | {"frame_weight": weight}
