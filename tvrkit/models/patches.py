"""What an image tower's patches attend to: open_clip's vision transformers, and timm's (PE-Core,
SigLIP, EVA02, ViTamin)."""

from typing import Any, NamedTuple

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PatchAttention(NamedTuple):
    """The attention of all blocks, and where the picture's feature is read from.

    Attributes:
        layers: (N, layers, heads, tokens, tokens) float, rows sum to 1. First the prefix (class and
            register tokens), then patches row by row.
        readout: (N, tokens) float, sums to 1: how the tokens behind the last block make the
            feature. The class token's is 1 at it; attention pooling has its own; a mean is equal
            over patches.
        prefix: number of tokens before the patches.
        grid: rows and columns of patches.
    """

    layers: Tensor
    readout: Tensor
    prefix: int
    grid: tuple[int, int]

    def last(self) -> Tensor:
        """(N, rows, columns): what the readout attends to in the last block, mean over heads."""
        return self._patches(self.readout[:, None] @ self.layers[:, -1].mean(dim=1))

    def rollout(self) -> Tensor:
        """(N, rows, columns): the readout traced to the patches, r A_n ... A_1 with
        A_l = (mean over heads + I) / 2; the prefix's own share is left out.

        Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020.
        """
        tokens = self.layers.shape[-1]
        mixed = (self.layers.mean(dim=2) + torch.eye(tokens, device=self.layers.device)) / 2
        flow = self.readout[:, None]
        for layer in reversed(mixed.unbind(dim=1)):
            flow = flow @ layer
        return self._patches(flow)

    def _patches(self, flow: Tensor) -> Tensor:
        return flow[:, 0, self.prefix :].unflatten(1, self.grid)


def lacks_patches(visual: nn.Module) -> str:
    """Why there is no patch attention: the name of the tower; "" where there is."""
    if isinstance(visual, VisionTransformer):
        plain = all(isinstance(b, ResidualAttentionBlock) for b in visual.transformer.resblocks)
        return "" if plain and visual.attn_pool is None else "attentional pooler (CoCa)"
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    is_vit = all(hasattr(trunk, part) for part in ("blocks", "patch_embed", "num_prefix_tokens"))
    return "" if is_vit else type(trunk).__name__


@torch.no_grad()
def patch_attention(visual: Any, pixels: Tensor) -> PatchAttention:
    """One pass through a tower for which `lacks_patches` is "".

    Args:
        visual: the tower.
        pixels: (N, 3, S, S) float, normalised.
    """
    with AttentionRecorder() as seen:
        visual(pixels)
    if isinstance(visual, VisionTransformer):
        depth, prefix, grid = visual.transformer.layers, 1, visual.grid_size
        by_class = visual.pool_type == "tok"
    else:
        trunk = visual.trunk
        depth, prefix = len(trunk.blocks), trunk.num_prefix_tokens
        grid, by_class = trunk.patch_embed.grid_size, trunk.global_pool == "token"
    layers, pool = torch.stack(seen.attention[:depth], dim=1), seen.attention[depth:]
    if pool:  # of latents to the tokens
        readout = pool[0].mean(dim=(1, 2))
    else:
        readout = layers.new_zeros(layers.shape[0], layers.shape[-1])
        readout[:, slice(0, 1) if by_class else slice(prefix, None)] = 1
        readout = readout / readout.sum(dim=1, keepdim=True)
    return PatchAttention(layers, readout, prefix, grid)


class AttentionRecorder(TorchFunctionMode):
    """Keeps the attention of every call while it is entered.

    open_clip's blocks and torch's own layers call the multi-head attention, timm's blocks the fused
    product.

    Attributes:
        attention: (N, heads, queries, keys) float each, in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        options = kwargs or {}
        if function is F.multi_head_attention_forward:
            options = options | {"need_weights": True, "average_attn_weights": False}
            output, attention = function(*args, **options)
            self.attention.append(attention)
            return output, attention
        if function is F.scaled_dot_product_attention:
            query, key = args[:2]
            logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
            self.attention.append(logits.softmax(dim=-1))
        return function(*args, **options)
