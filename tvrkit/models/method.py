"""What every text-video retrieval method does."""

from __future__ import annotations

from torch import Tensor, nn

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures


class Method(nn.Module):
    """A text-video retrieval method: a backbone, what the paper adds to it, its score and its loss.

    Subclasses set `Settings`, a frozen pydantic dataclass that the recipe's `method` section (less
    `name`) is read into, and keep every parameter of the pre-trained model under `self.backbone`:
    optimiser groups rely on that.
    """

    Settings: type

    def __init__(self, backbone: nn.Module, settings):
        super().__init__()
        self.backbone = backbone
        self.settings = settings

    def encode_text(self, batch: TextVideoBatch) -> TextFeatures:
        """Everything that depends on the texts only, once."""
        raise NotImplementedError

    def encode_video(self, batch: TextVideoBatch) -> VideoFeatures:
        """Everything that depends on the videos only, once."""
        raise NotImplementedError

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(N_t, N_v) float32 scores on the cosine scale, no temperature, the same in training and
        evaluation."""
        raise NotImplementedError

    def loss(
        self, text: TextFeatures, video: VideoFeatures, batch: TextVideoBatch
    ) -> dict[str, Tensor]:
        """Scalar `"loss"` and its named parts, on B matched pairs (row i of both sides belongs
        together)."""
        raise NotImplementedError

    def before_step(self) -> None:
        """What happens before each training step (a momentum update); nothing in most methods."""

    def explain(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Tensor]:
        """Named attention tensors of B matched pairs, without gradient."""
        raise NotImplementedError
