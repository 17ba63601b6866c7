"""CLIP's transformers in fewer passes over memory than open_clip's modules, with the same weights
and the same numbers to rounding. A tower that is built in another way goes open_clip's way.

Four things are done otherwise: attention is one projection and one call; CLIP's activation
x sigmoid(1.702 x) is silu, its factor in the weights around it; the patch embedding is a matrix
product, mean and deviation of the pixels in its weights; and of the last image block only the class
token is computed, as no other is read, without keys and values of the others.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from open_clip import transformer as clip
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

KNOWN = {VisionTransformer, clip.Transformer, clip.ResidualAttentionBlock, clip.LayerNorm}
KNOWN |= {clip.LayerNormFp32, nn.modules.linear.NonDynamicallyQuantizableLinear, nn.Linear}
KNOWN |= {nn.Conv2d, QuickGELU, nn.GELU, nn.Identity, nn.ModuleList, nn.Sequential}
KNOWN.add(nn.MultiheadAttention)
FACTOR = 1.702  # of CLIP's activation
GREY = 128.0  # taken off pixels before they meet weights: in bf16 differences are told, not sums


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(..., 3, H, W) float as an image tower takes it: uint8 is scaled to [0, 1] and standardised,
    float stays as it is."""
    if images.dtype != torch.uint8:
        return images
    return images.to(mean.dtype).div_(255).sub_(mean).div_(std)


def encode_images(visual: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, D) what `visual(normalise(images, mean, std))` returns.

    Args:
        visual: the image tower of an open_clip model.
        images: (N, 3, S, S) uint8, or float that is normalised.
        mean, std: (3, 1, 1) of RGB values in [0, 1].
    """
    if not (isinstance(visual, VisionTransformer) and fits(visual) and visual.pool_type == "tok"):
        return visual(normalise(images, mean, std))
    *blocks, last = visual.transformer.resblocks
    x = _through(visual.transformer, blocks, visual.ln_pre(_embed(visual, images, mean, std)))
    return visual.ln_post(_first_token(last, x)) @ visual.proj


def run(transformer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L, D) what a text tower's `transformer(x, mask)` returns.

    Args:
        transformer: of open_clip.
        x: (B, L, D) float.
        mask: (L, L), (B, 1, L, L) or, as CoCa makes it, (B heads, L, L) float, added to the
            attention logits, or None.
    """
    blocks: Any = transformer.resblocks
    heads = blocks[0].attn.num_heads
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, heads))
    if not fits(transformer):
        if mask is not None and mask.ndim == 4:
            mask = mask.expand(-1, heads, -1, -1).flatten(0, 1)
        return transformer(x, attn_mask=mask)
    return _through(transformer, blocks, x, mask)


def _through(transformer: Any, blocks: Iterable, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One `block` after the other; each computes again for the backward pass where open_clip's
    `grad_checkpointing` is set; there is no dropout that would draw again."""
    again = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    for each in blocks:
        x = (again if transformer.grad_checkpointing else block)(each, x, mask)
    return x


def block(module: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pre-norm block: y = x + attention(norm(x)), then y + mlp(norm(y)).

    Args:
        module: ln_1, attn, ln_2 and mlp, named as CLIP's are.
        x: (B, L, D) float.
        mask: added to the attention logits (B, heads, L, L), of any shape that spreads to it.
    """
    x = x + attention(module.attn, module.ln_1(x), mask)
    return x + _mlp(module.mlp, module.ln_2(x))


def attention(module: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Self-attention with the weights of torch's module; arguments and result as of `block`."""
    sides = F.linear(x, module.in_proj_weight, module.in_proj_bias)
    heads = (module.num_heads, -1)
    query, key, value = (x.unflatten(-1, heads).transpose(1, 2) for x in sides.chunk(3, dim=-1))
    mask = None if mask is None else mask.to(query.dtype)
    read = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
    return module.out_proj(read)


def _first_token(module: Any, x: Tensor) -> Tensor:
    """`block(module, x)[:, 0]`, (B, D), without keys and values of all tokens: of one query q,
    softmax(q (W_k x)^T) W_v x = softmax((W_k^T q) x^T) x W_v^T; the bias of the keys cancels."""
    attn, normed = module.attn, module.ln_1(x)
    parts = zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
    (query, at), (key, _), (value, bias) = parts
    heads = (attn.num_heads, -1)
    query = F.linear(normed[:, 0], query, at).unflatten(-1, heads) / attn.head_dim**0.5
    look = torch.einsum("bhd,hde->bhe", query, key.unflatten(0, heads))
    seen = (look @ normed.transpose(1, 2)).softmax(dim=-1) @ normed
    read = torch.einsum("bhe,hde->bhd", seen, value.unflatten(0, heads)).flatten(1) + bias
    y = x[:, 0] + attn.out_proj(read)
    return y + _mlp(module.mlp, module.ln_2(y))


def _mlp(module: Any, x: Tensor) -> Tensor:
    """W2 act(W1 x + b1) + b2; x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""
    if not isinstance(module.gelu, QuickGELU):
        return module(x)
    inner, outer = module.c_fc, module.c_proj
    inside = F.silu(F.linear(x, FACTOR * inner.weight, FACTOR * inner.bias))
    return F.linear(inside, outer.weight / FACTOR, outer.bias)


def _embed(visual: Any, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, 1 + patches, D) class token and patches, with their positions.

    w . (x / 255 - mean) / std = w' . (x - g) + w' . (g - 255 mean),  w' = w / (255 std), g grey
    """
    (rows, columns), (height, width) = visual.grid_size, visual.patch_size
    images = images[..., : rows * height, : columns * width]
    patches = images.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    weight, bias = visual.conv1.weight, None
    if images.dtype == torch.uint8:
        weight = weight / (255 * std)
        bias = (weight * (GREY - 255 * mean)).sum((1, 2, 3))
        patches = patches.to(weight.dtype).sub_(GREY)
    x = F.linear(patches, weight.flatten(1), bias)
    token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    return torch.cat([token, x], dim=1) + visual.positional_embedding.to(x.dtype)


def fits(tower: Any) -> bool:
    """Whether it is made of nothing but what is known here, and nobody listens to its modules."""
    return all(
        type(module) in KNOWN and not module._forward_hooks and not module._forward_pre_hooks
        for module in tower.modules()
    )
