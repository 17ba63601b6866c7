"""What an image tower's patches attend to: open_clip's vision transformers, and timm's (PE-Core,
SigLIP, EVA02, ViTamin)."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn


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
    return (_of_open_clip if isinstance(visual, VisionTransformer) else _of_timm)(visual, pixels)


def _of_open_clip(visual: VisionTransformer, pixels: Tensor) -> PatchAttention:
    x, layers = visual._embeds(pixels), []
    for block in visual.transformer.resblocks:
        normed = block.ln_1(x)
        layers.append(block.attn(normed, normed, normed, average_attn_weights=False)[1])
        x = block(x)
    readout = x.new_zeros(x.shape[:2])
    if visual.pool_type == "tok":
        readout[:, 0] = 1
    else:
        readout[:, 1:] = 1 / (x.shape[1] - 1)
    return PatchAttention(torch.stack(layers, dim=1), readout, 1, visual.grid_size)


def _of_timm(visual: TimmModel, pixels: Tensor) -> PatchAttention:
    trunk: Any = visual.trunk
    pool, inputs = getattr(trunk, "attn_pool", None), []
    with contextlib.ExitStack() as stack:
        layers = stack.enter_context(_recorded([block.attn for block in trunk.blocks]))
        if pool is not None:
            hook = pool.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
            stack.callback(hook.remove)
        visual(pixels)
    attention, prefix = torch.stack(layers, dim=1), trunk.num_prefix_tokens
    if pool is not None:
        readout = _pooling(pool, inputs[0])
    else:
        readout = attention.new_zeros(attention.shape[0], attention.shape[-1])
        by_class = trunk.global_pool == "token"
        readout[:, slice(0, 1) if by_class else slice(prefix, None)] = 1
        readout = readout / readout.sum(dim=1, keepdim=True)
    return PatchAttention(attention, readout, prefix, trunk.patch_embed.grid_size)


@contextlib.contextmanager
def _recorded(modules: list[Any]) -> Iterator[list[Tensor]]:
    """The attention of timm's modules, as they run unfused: what reaches their dropout."""
    found: list[Tensor] = []
    fused = [module.fused_attn for module in modules]
    hooks = [
        module.attn_drop.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        for module in modules
    ]
    for module in modules:
        module.fused_attn = False
    try:
        yield found
    finally:
        for module, was, hook in zip(modules, fused, hooks, strict=True):
            module.fused_attn = was
            hook.remove()


def _pooling(pool: Any, x: Tensor) -> Tensor:
    """(N, tokens): softmax(q k^T / sqrt(d)) of timm's AttentionPoolLatent, mean over heads and
    latents. It has no dropout to record at."""
    heads = (pool.num_heads, pool.head_dim)
    query = pool.q(pool.latent.expand(len(x), -1, -1)).unflatten(-1, heads)
    key = pool.kv(x).unflatten(-1, (2, *heads))[:, :, 0]
    query, key = pool.q_norm(query.transpose(1, 2)), pool.k_norm(key.transpose(1, 2))
    return (query * pool.scale @ key.transpose(-2, -1)).softmax(dim=-1).mean(dim=(1, 2))
