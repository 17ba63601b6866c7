"""Patch attention: plain formulas as oracles. Each family's is in test_families."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from tvrkit.models.backbone import create_backbone
from tvrkit.models.patches import PatchAttention
from tvrkit.settings import BackboneConfig

from .test_backbone import random_frames


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_backbone(BackboneConfig("tvrkit-tiny", pretrained=None)).eval()


def test_patch_attention_of_the_first_layer_is_the_plain_formula(tiny):
    frames, heads = random_frames(2, 3, 64, 64), 4
    attention = tiny.patch_attention(frames).layers
    visual, block = tiny.clip.visual, tiny.clip.visual.transformer.resblocks[0]
    patches = visual.conv1(tiny.normalise(frames)).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(2, 1, -1), patches], dim=1)
    x = block.ln_1(visual.ln_pre(tokens + visual.positional_embedding))
    query, key, _ = (x @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=-1)
    for head in range(heads):
        part = slice(32 * head, 32 * (head + 1))
        expected = (query[..., part] @ key[..., part].transpose(1, 2) / 32**0.5).softmax(dim=-1)
        torch.testing.assert_close(attention[:, 0, head], expected, atol=1e-5, rtol=1e-4)


def test_patch_attention_is_returned_whole_and_changes_nothing(tiny):
    backbone, layers, heads, tokens = tiny, 4, 4, 17
    frames = random_frames(1, 3, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        before = backbone.encode_frames(frames[None])
    found = backbone.patch_attention(frames)
    attention = found.layers
    assert attention.shape == (1, layers, heads, tokens, tokens)
    assert not attention.requires_grad
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, layers, heads, tokens))
    grid = found.rollout()
    assert grid.shape == (1, round((tokens - 1) ** 0.5), round((tokens - 1) ** 0.5))
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_frames(frames[None]), before)


def test_rollout_is_the_product_of_mixed_layers():
    attention = torch.rand(2, 3, 4, 10, 10, generator=torch.Generator().manual_seed(0)).softmax(
        dim=-1
    )
    readout = torch.nn.functional.one_hot(torch.zeros(2, dtype=torch.int64), 10).float()
    rollout = PatchAttention(attention, readout, 1, (3, 3)).rollout().flatten(1)
    for row in range(2):
        flow = np.eye(10)
        for layer in range(3):
            flow = (0.5 * attention[row, layer].mean(dim=0).numpy() + 0.5 * np.eye(10)) @ flow
        np.testing.assert_allclose(rollout[row], flow[0, 1:], atol=1e-6)
        assert rollout[row].sum() + flow[0, 0] == pytest.approx(1, abs=1e-5)


def test_patch_attention_needs_a_vision_transformer(tiny):
    other = deepcopy(tiny)
    other.clip.visual = torch.nn.Identity()
    with pytest.raises(
        ValueError, match="attention of tvrkit-tiny: expected a vision transformer, got Identity"
    ):
        other.patch_attention(random_frames(1, 3, 64, 64))
