"""The temporal transformer over frame features ("seqTransf"), shared by CLIP4Clip, DMAE, GLSCL and
HMMC."""

from collections import OrderedDict
from typing import Any, Self

from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn.functional import normalize

from tvrkit.files import expect
from tvrkit.models import towers
from tvrkit.models.backbone import Backbone

HEAD_WIDTH = 64  # of CLIP's attention heads
LAYER_NORM_EPS = 1e-12  # inside the root, as in the released code
MASKED_KEY = -1e6  # added to the attention logits of padded frames


class ResidualBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)). Parameters are named as CLIP's
    are."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        inner, outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        layers = OrderedDict({"c_fc": inner, "gelu": QuickGELU(), "c_proj": outer})
        self.mlp = nn.Sequential(layers)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        return towers.block(self, x, key_bias[:, None, None])


class TemporalTransformer(nn.Module):
    """Frames attend to each other: y = blocks(f + position) + f (CLIP4Clip's seqTransf; Luo et al.,
    2021).

    Padded frames get -1e6 as attention keys, so that they change nothing in valid frames; their own
    outputs are defined all the same.

    Args:
        width: D of the frame features.
        layers: number of blocks.
        heads: attention heads; `width` is a multiple of it.
        positions: the largest number of frames.
    """

    def __init__(self, width: int, layers: int, heads: int, positions: int):
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(positions, width)
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads) for _ in range(layers))

    @classmethod
    def beside_clip(
        cls, backbone: Backbone, layers: int, positions: int | None = None, heads: int | None = None
    ) -> Self:
        """Of the sizes that fit a backbone, with torch's own start: positions are N(0, 1), as in
        HMMC's released code (finding 31).

        Args:
            backbone: whose frames it reads.
            layers: as of the class.
            positions: as of the class; None = CLIP's context length.
            heads: as of the class; None = CLIP's text tower's.
        """
        width, own = backbone.width, max(1, backbone.width // HEAD_WIDTH)
        if text := _clip_text(backbone):
            own = text.transformer.resblocks[0].attn.num_heads
        return cls(width, layers, heads or own, positions or backbone.context_length)

    @classmethod
    def from_clip(
        cls, backbone: Backbone, layers: int, positions: int | None = None, heads: int | None = None
    ) -> Self:
        """Start from CLIP's text positions and first text blocks, as far as they go.

        Small random weights where the text tower's width is not the joint one, or the tower is not
        CLIP's. Arguments as of `beside_clip`.
        """
        temporal = cls.beside_clip(backbone, layers, positions, heads)
        for name, parameter in temporal.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if text := _clip_text(backbone):
            own_positions = temporal.frame_position_embeddings.weight.data
            known = text.positional_embedding[: len(own_positions)].detach()
            own_positions[: len(known)] = known
            for own, block in zip(temporal.resblocks, text.transformer.resblocks, strict=False):
                own.load_state_dict(block.state_dict())
        return temporal

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, F, D) float from frames (B, F, D) float and mask (B, F), non-zero where valid (None =
        all).

        Raises:
            ValueError: more frames than positions.
        """
        count, known = frames.shape[1], self.frame_position_embeddings.num_embeddings
        expect(count <= known, "temporal transformer", f"at most {known} frames", count)
        valid = frames.new_ones(frames.shape[:2]) if mask is None else mask.to(frames.dtype)
        key_bias = (1 - valid) * MASKED_KEY
        x = frames + self.frame_position_embeddings.weight[:count]
        for block in self.resblocks:
            x = block(x, key_bias)
        return x + frames


def _clip_text(backbone: Backbone) -> Any:
    """CLIP's text tower, if it has the joint width; else None."""
    fits = not backbone.is_hf and backbone.clip.text.width == backbone.width
    return backbone.clip.text if fits else None


def mean_frame(frames: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean over the frames (B, F, D) in `mask` (B, F) bool of nrm(frame)."""
    return (normalize(frames, dim=-1) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
