"""Towers in fewer steps, against open_clip's own."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from open_clip import CustomTextCLIP
from torch import nn

from tvrkit.data.loader import train_loader
from tvrkit.models import towers
from tvrkit.models.backbone import create_backbone
from tvrkit.recipes import load_recipe
from tvrkit.settings import BackboneConfig
from tvrkit.training import optim, runs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def make(*, quick_gelu=True, **vision):
    torch.manual_seed(0)
    vision = {
        "image_size": 32,
        "layers": 3,
        "width": 64,
        "head_width": 16,
        "patch_size": 8,
    } | vision
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    clip = CustomTextCLIP(24, vision, text, quick_gelu=quick_gelu)
    for name, p in clip.named_parameters():  # biases start at zero, which would hide them
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.1)
    return clip


def with_gradients(module, call, *inputs):
    module.zero_grad()
    found = call(*inputs)
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


MEAN, STD = (torch.tensor(rgb).view(3, 1, 1) for rgb in ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)))
encode = partial(towers.encode_images, mean=MEAN, std=STD)
FAST = {
    "quick": {},
    "gelu": {"quick_gelu": False},
    "cut": {"image_size": 35},  # the last columns fill no patch
    "one": {"layers": 1},
    "sines": {"pos_embed_type": "sin_cos_2d"},
    "late": {"final_ln_after_pool": True},
}
PLAIN = {
    "average": {"pool_type": "avg"},
    "scale": {"ls_init_value": 0.1},
    "pooler": {"attentional_pool": True, "attn_pooler_heads": 2},
    "dropout": {"patch_dropout": 0.5},
    "custom": {"qk_norm": True, "block_type": "custom"},
}


@pytest.mark.parametrize("pixels", ["bytes", "normalised"])
@pytest.mark.parametrize("kind", FAST)
def test_images_have_the_features_and_gradients_of_open_clips_tower(kind, pixels, monkeypatch):
    visual = make(**FAST[kind]).visual
    images = torch.randint(256, (5, 3, *visual.image_size), dtype=torch.uint8)
    expected = with_gradients(visual, visual, ((images / 255 - MEAN) / STD).float())
    monkeypatch.setattr(visual, "forward", lambda *_: pytest.fail("went open_clip's way"))
    images = images if pixels == "bytes" else towers.normalise(images, MEAN, STD)
    found = with_gradients(visual, lambda x: encode(visual, x), images)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_tower_of_another_build_goes_open_clips_way(kind):
    visual = make(**PLAIN[kind]).visual.eval()
    images = torch.randn(5, 3, *visual.image_size)
    assert torch.equal(encode(visual, images), visual(images))


def test_a_wrapped_or_watched_module_is_called():
    """An adapter in place of a layer, or a hook on one, must not be passed over."""
    images, seen = torch.randn(2, 3, 32, 32), []
    visual = make().visual
    handle = visual.transformer.resblocks[2].register_forward_hook(lambda *_: seen.append(1))
    encode(visual, images)
    handle.remove()
    encode(visual, images)
    assert seen == [1]

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    mlp = visual.transformer.resblocks[0].mlp
    doubled = Doubled(*mlp.c_fc.weight.shape[::-1])
    doubled.load_state_dict(mlp.c_fc.state_dict())
    mlp.c_fc = doubled
    assert torch.equal(encode(visual, images), visual(images))


@pytest.mark.parametrize("masked", ["not", "causal", "padding"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_texts_have_the_features_and_gradients_of_open_clips_tower(masked, quick_gelu, monkeypatch):
    stack, x = make(quick_gelu=quick_gelu).text.transformer, torch.randn(3, 7, 32)
    mask = None if masked == "not" else torch.full((7, 7), -torch.inf).triu(1)
    if masked == "padding":
        padding = torch.arange(7) >= torch.tensor([[2], [7], [4]])
        mask = mask.masked_fill(padding[:, None, None], -torch.inf)
    by_head = mask if masked != "padding" else mask[:, 0].repeat_interleave(2, dim=0)
    expected = with_gradients(stack, lambda x: stack(x, attn_mask=by_head), x)
    monkeypatch.setattr(stack, "forward", lambda *_, **__: pytest.fail("went open_clip's way"))
    found = with_gradients(stack, lambda x: towers.run(stack, x, mask), x)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_attention_is_that_of_torchs_module():
    module = nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    x, bias = torch.randn(3, 6, 32), torch.randn(3, 6)
    expected = module(x, x, x, key_padding_mask=bias, need_weights=False)[0]
    found = towers.attention(module, x, bias[:, None, None])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_bf16_is_as_near_as_open_clips_own():
    visual = make().visual
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    normalised = towers.normalise(images, MEAN, STD)
    exact = visual(normalised)
    with torch.autocast("cpu", torch.bfloat16):
        plain, fast = visual(normalised), encode(visual, images)
    assert plain.dtype == fast.dtype == torch.bfloat16
    assert (fast - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


def test_the_embedded_backbone_goes_the_short_way(monkeypatch):
    backbone = create_backbone(BackboneConfig("tvrkit-tiny"))
    slow = deepcopy(backbone)
    monkeypatch.setattr(backbone.clip.visual, "forward", lambda *_: pytest.fail("the long way"))
    frames = torch.randint(256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    expected = slow.clip.visual(slow.normalise(frames.flatten(0, 1))).unflatten(0, (2, 3))
    torch.testing.assert_close(backbone.encode_frames(frames), expected, **CLOSE)


@pytest.mark.parametrize("side", ["visual", "text"])
def test_blocks_that_are_computed_again_keep_less_and_give_the_same_bits(side):
    clip, kept = make(), []

    def keep(tensor):
        kept[-1] += tensor.nbytes
        return tensor

    def through(x):
        if side == "visual":
            return encode(clip.visual, x)
        return towers.run(clip.text.transformer, x, torch.full((7, 7), -torch.inf).triu(1))

    x, found = torch.randn(3, 3, 32, 32) if side == "visual" else torch.randn(3, 7, 32), []
    for again in (False, True):
        getattr(clip, side).set_grad_checkpointing(again)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found.append(with_gradients(getattr(clip, side), through, x))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert kept[1] < kept[0] / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip4clip", "dmae", "glscl", "hmmc"])
def test_an_epoch_of_training_ends_with_the_weights_of_open_clips_way(
    name, smoke_home, monkeypatch
):
    """In float64: in float32 Adam makes a whole step of a gradient that is all but zero, whichever
    sign rounding gives it, so that open_clip's way ends 1e-3 from itself where its start is moved
    by a last digit (GLSCL, whose decoder has ReLUs)."""
    small = ["data.max_frames=2", "method.max_frames=2"][: 1 + (name == "dmae")]
    config, ends = load_recipe(f"{name}_shapes", small, "smoke"), []
    for _ in ("short", "plain"):
        torch.manual_seed(0)
        method = runs.build_method(config).double().eval()
        batches = train_loader(
            runs.prepared(config).split("train"), config, method.backbone, seed=0
        )
        optimizer, _ = optim.build_optimizer(method, config.train, len(batches))
        for batch in batches:
            batch.frames = method.backbone.normalise(batch.frames).double()
            text, video = method.encode_text(batch), method.encode_video(batch)
            optimizer.zero_grad()
            method.loss(text, video, batch)["loss"].backward()
            optimizer.step()
        ends.append(nn.utils.parameters_to_vector(method.parameters()).detach())
        monkeypatch.setattr(towers, "fits", lambda tower: False)
    assert 0 < (ends[0] - ends[1]).abs().max() < 1e-10
