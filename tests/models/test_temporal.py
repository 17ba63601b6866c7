"""The temporal transformer: padding, batch, and its start from CLIP (released numbers:
test_parity)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from tvrkit.models.backbone import create_backbone
from tvrkit.models.temporal import TemporalTransformer
from tvrkit.settings import BackboneConfig
from tvrkit.shapes.render import render
from tvrkit.shapes.scenes import PRESETS, random_scene

WIDTH = 32


@pytest.fixture
def frames():
    return torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    return torch.arange(5) < torch.tensor([5, 3, 1])[:, None]


@pytest.fixture
def temporal():
    torch.manual_seed(0)
    module = TemporalTransformer(WIDTH, layers=2, heads=4, positions=8)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def test_padding_changes_no_valid_frame(temporal, frames, mask):
    before = temporal(frames, mask)
    noisy = torch.where(mask[..., None], frames, 100 * torch.randn_like(frames))
    assert torch.equal(temporal(noisy, mask)[mask], before[mask])
    short = temporal(frames[1:2, :3])
    torch.testing.assert_close(short[0], before[1, :3], atol=1e-5, rtol=1e-5)


def test_order_of_frames_matters_and_order_of_videos_does_not(temporal, frames):
    whole = temporal(frames)
    torch.testing.assert_close(temporal(frames.flip(0)), whole.flip(0), atol=1e-5, rtol=1e-5)
    assert (temporal(frames.flip(1)).flip(1) - whole).abs().max() > 1e-2


def test_every_parameter_gets_a_gradient(temporal, frames, mask):
    (temporal(frames, mask)[mask] ** 3).sum().backward()
    for name, parameter in temporal.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_without_layers_it_adds_positions(frames):
    temporal = TemporalTransformer(WIDTH, layers=0, heads=1, positions=5)
    expected = 2 * frames + temporal.frame_position_embeddings.weight
    torch.testing.assert_close(temporal(frames), expected)


def test_too_many_frames_are_an_error(temporal):
    with pytest.raises(ValueError, match="expected at most 8 frames, got 9"):
        temporal(torch.zeros(1, 9, WIDTH))


def clip(width, text_width):
    blocks = nn.ModuleList(ResidualAttentionBlock(text_width, 2) for _ in range(3))
    positions = nn.Parameter(torch.randn(6, text_width))
    text = SimpleNamespace(
        positional_embedding=positions, transformer=SimpleNamespace(resblocks=blocks)
    )
    text.width, sizes = text_width, {"width": width, "context_length": 6}
    return SimpleNamespace(**sizes, is_hf=False, clip=SimpleNamespace(text=text))


def test_starts_from_clip_where_widths_agree():
    backbone = clip(WIDTH, WIDTH)
    text = backbone.clip.text
    temporal = TemporalTransformer.from_clip(backbone, layers=4, positions=8)
    for own, block in zip(temporal.resblocks[:3], text.transformer.resblocks, strict=True):
        for name, weight in block.state_dict().items():
            assert torch.equal(own.state_dict()[name], weight)
    assert temporal.resblocks[0].attn.num_heads == 2
    assert torch.equal(temporal.frame_position_embeddings.weight[:6], text.positional_embedding)
    assert temporal.frame_position_embeddings.weight.shape == (8, WIDTH)
    own, shared = temporal.frame_position_embeddings.weight, text.positional_embedding
    assert own.data_ptr() != shared.data_ptr()


@pytest.mark.parametrize("towers", ["other width", "no blocks"])
def test_starts_at_random_elsewhere(towers):
    backbone = clip(WIDTH, 64 if towers == "other width" else WIDTH)
    if towers == "no blocks":
        backbone.is_hf, backbone.clip = True, None
    temporal = TemporalTransformer.from_clip(backbone, layers=2)
    assert temporal.frame_position_embeddings.weight.shape == (6, WIDTH)
    assert temporal(torch.randn(1, 4, WIDTH)).isfinite().all()


@torch.no_grad()
def test_clips_positions_are_a_hundredth_of_the_frames_they_are_added_to():
    """Why no method sees the order of frames at its start; N(0, 1) positions are as long."""
    backbone = create_backbone(BackboneConfig())
    scene = random_scene(PRESETS["quick"], np.random.default_rng(0))
    pixels = torch.from_numpy(render(scene, [""] * 8, [1])).permute(0, 3, 1, 2)
    length = backbone.encode_frames(pixels[None]).norm(dim=-1).mean()
    starts = TemporalTransformer.from_clip, TemporalTransformer.beside_clip
    made = [start(backbone, 1, 8).frame_position_embeddings.weight for start in starts]
    clip, normal = (positions.norm(dim=-1).mean() / length for positions in made)
    assert 0.005 < clip < 0.02
    assert 0.5 < normal < 2
