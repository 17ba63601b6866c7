"""The backbone matrix: each family is built, encodes, trains a step and is loaded back."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel

from tvrkit import inspection
from tvrkit.models import checkpoints
from tvrkit.models.clip4clip import CLIP4Clip

from .families import FAMILIES, build, case, expected, step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """(name, folder of its files, method over it, batch); one family is in memory at a time."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub")
    return request.param, folder, *case(request.param, folder)


@torch.no_grad()
def test_words_sentence_and_frames_are_open_clips_own(made):
    _name, _, method, batch = made
    backbone = method.backbone
    words, sentence = backbone.encode_text(batch.tokens, batch.token_mask)
    assert words.shape == (3, 16, backbone.width)
    assert words.isfinite().all()
    whole, pictures = expected(backbone, batch)
    torch.testing.assert_close(sentence, whole, atol=1e-4, rtol=1e-4)
    frames = backbone.encode_frames(batch.frames).flatten(0, 1)
    torch.testing.assert_close(frames, pictures, atol=1e-4, rtol=1e-4)
    assert backbone.preprocessing.size == backbone.image_size


def test_patch_attention_or_its_absence_by_name(made):
    name, _, method, batch = made
    backbone, frames = method.backbone, batch.frames[0]
    if FAMILIES[name]:
        (lack,) = backbone.lacks
        assert lack.startswith(f"patch attention (its image tower: {FAMILIES[name]}")
        with pytest.raises(
            ValueError, match=f"of {name}: expected a vision transformer, got .*{FAMILIES[name]}"
        ):
            backbone.patch_attention(frames)
        shown, maps = inspection.patch_attention(backbone, frames.permute(0, 2, 3, 1).numpy())
        assert (len(shown), maps) == (len(frames), {})  # the notebooks say so and go on
        return
    assert backbone.lacks == []
    visual, outputs = backbone.clip.visual, []
    blocks = visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks
    hooks = [b.attn.register_forward_hook(lambda *seen: outputs.append(seen)) for b in blocks]
    before = backbone.encode_frames(frames[None])
    plain = list(outputs)
    outputs.clear()
    found = backbone.patch_attention(frames)
    for hook in hooks:
        hook.remove()
    if isinstance(visual, TimmModel):
        for layer, (module, given, output) in enumerate(plain):
            torch.testing.assert_close(_through(module, given[0], found.layers[:, layer]), output)
    tokens = found.prefix + found.grid[0] * found.grid[1]
    assert found.layers.shape[2:] == (blocks[0].attn.num_heads, tokens, tokens)
    ones = torch.ones(found.layers.shape[:-1])
    torch.testing.assert_close(found.layers.sum(-1), ones, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.readout.sum(-1), torch.ones(2), atol=1e-5, rtol=0)
    assert found.last().shape == found.rollout().shape == (2, *found.grid)
    assert (found.rollout() >= 0).all()
    assert not any(getattr(block.attn, "fused_attn", True) is False for block in blocks)
    torch.testing.assert_close(backbone.encode_frames(frames[None]), before)


@torch.no_grad()
def _through(module, x, attention):
    """A timm block's attention output from its attention: the values weighed, normed, projected."""
    width = len(module.proj.weight)
    if module.qkv is None:
        value = module.v_proj(x)
    else:
        weight, bias = module.qkv.weight[-width:], module.qkv.bias
        bias = bias[-width:] if bias is not None else getattr(module, "v_bias", None)
        value = torch.nn.functional.linear(x, weight, bias)
    value = value.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
    return module.proj(module.norm((attention @ value).transpose(1, 2).flatten(2)))


def test_a_step_trains_both_towers_and_the_weights_are_loaded_back(made, tmp_path):
    name, folder, method, batch = made
    gradients = step(method, batch)
    assert "backbone.clip.logit_scale" in gradients
    for tower in ("text", "visual"):
        some = [g for key, g in gradients.items() if key.startswith(f"backbone.clip.{tower}.")]
        assert some
        assert all(g.isfinite().all() for g in some)
        assert any(g.abs().max() > 0 for g in some)
    method.zero_grad()
    checkpoints.save(method, tmp_path / "one.safetensors")
    other = CLIP4Clip(build(name, folder), method.settings).eval()
    checkpoints.load(other, tmp_path / "one.safetensors")
    with torch.no_grad():
        for side in ("encode_text", "encode_video"):
            mine, its = getattr(method, side)(batch), getattr(other, side)(batch)
            for key in ("sentence", "words", "frames"):
                if hasattr(mine, key):
                    torch.testing.assert_close(getattr(its, key), getattr(mine, key))


def test_what_open_clip_leaves_unset_in_coca_does_not_count(tmp_path, monkeypatch):
    create = open_clip.create_model

    def unset(*args, **options):
        clip = create(*args, **options)
        torch.nn.init.constant_(clip.text_decoder.text_projection, torch.nan)
        return clip

    monkeypatch.setattr(open_clip, "create_model", unset)
    backbone = build("coca_ViT-B-32", tmp_path)
    assert all(weight.isfinite().all() for weight in backbone.parameters())


def test_the_page_has_a_row_for_each_family():
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    rows = {row[1]: row[2:-1] for row in rows if len(row) > 2 and row[1] in FAMILIES}
    assert [*rows] == [*FAMILIES]
    for name, cells in rows.items():
        lack = FAMILIES[name]
        assert cells[-1] == (f"no: {lack}" if lack else "yes")
        assert cells[-2] == "equal"
        assert cells.count("yes") == (2 if lack else 3)
