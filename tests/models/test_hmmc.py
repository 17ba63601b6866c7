"""HMMC: what was corrected, by its properties. Released numbers are in the parity table."""

import dataclasses

import pytest
import torch

from tvrkit.models.hmmc import HMMC
from tvrkit.models.hmmc_pretraining import HMMCPretraining

from .hmmc_batches import CLOSE, loss_of, make, make_batch, noisy
from .small_methods import make_backbone, make_hmmc


def test_corrected_ignores_padding_and_released_does_not():
    batch = make_batch()
    for fidelity, same in (("corrected", True), ("released", False)):
        method = make(fidelity=fidelity).eval()
        scores, losses = [], []
        for side in (batch, noisy(batch)):
            text, video = method.encode_text(side), method.encode_video(side)
            scores.append(method.similarity(text, video))
            losses.append(method.loss(text, video, side)["loss"])
        assert torch.allclose(*scores, atol=1e-5) == same
        assert torch.allclose(*losses, atol=1e-4) == same


def test_scale_is_learned_when_corrected_and_constant_when_released():
    batch = make_batch()
    corrected, released = make(), make(fidelity="released")
    loss_of(corrected, batch)["loss"].backward()
    assert corrected.backbone.logit_scale.grad.abs() > 0
    assert not released.backbone.logit_scale.requires_grad


@pytest.mark.parametrize("cls", [HMMC, HMMCPretraining])
def test_permuting_the_batch_changes_nothing(cls):
    batch, order = make_batch(), torch.tensor([3, 1, 5, 0, 2, 4])
    method = make(cls, **({"mask_share": 0.0} if cls is HMMCPretraining else {}))
    state = {key: value.clone() for key, value in method.state_dict().items()}
    straight = loss_of(method, batch)
    method.load_state_dict(state)
    permuted = loss_of(method, batch[order])
    for name, value in straight.items():
        torch.testing.assert_close(permuted[name], value, **CLOSE)


@pytest.mark.parametrize("cls", [HMMC, HMMCPretraining])
@pytest.mark.parametrize("fidelity", ["released", "corrected"])
def test_every_trainable_parameter_gets_a_gradient(cls, fidelity):
    method = make(cls, fidelity=fidelity)
    loss_of(method, make_batch(tags=True))["loss"].backward()
    dead = [
        n
        for n, p in method.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # BatchNorm cancels the bias before it, up to rounding.
    assert [n for n in dead if not n.endswith("or.0.bias")] == []


@pytest.mark.parametrize("cls", [HMMC, HMMCPretraining])
@pytest.mark.parametrize("fidelity", ["released", "corrected"])
@pytest.mark.parametrize("rows", [1, 5])
def test_small_and_ragged_batches(cls, fidelity, rows):
    method = make(cls, fidelity=fidelity)
    for seed in range(3):
        method.before_step()
        parts = loss_of(method, make_batch(rows, frames=3 + seed, seed=seed))
        parts["loss"].backward()
        assert all(value.isfinite() for value in parts.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_captions_of_one_video_are_no_negatives():
    batch = make_batch(2)
    method = make().eval()
    text, video = method.encode_text(batch), method.encode_video(batch)
    apart = method.loss(text, video, batch)
    together = method.loss(
        text, video, dataclasses.replace(batch, video_index=torch.tensor([4, 4]))
    )
    assert apart["loss"] > 0
    assert together["loss"] == 0


def test_explain_names_the_frames_that_count():
    batch = make_batch()
    method = make(top_frames=2).eval()
    text, video = method.encode_text(batch), method.encode_video(batch)
    maps = method.explain(text, video)
    assert torch.equal(maps["frame_counted"].sum(1), batch.frame_mask.sum(1).clamp(max=2))
    mean = (maps["frame_text"] * maps["frame_counted"]).sum(1) / maps["frame_counted"].sum(1)
    whole = torch.cosine_similarity(text.sentence, video.video, dim=-1)
    torch.testing.assert_close(method.similarity(text, video).diagonal(), whole + mean)


def test_released_frames_start_from_noise_and_corrected_ones_from_clip():
    """Released, the lines that copy CLIP's text positions and blocks are commented out (31)."""
    blocks = make_backbone().clip.text.transformer.resblocks
    for fidelity, copied in (("corrected", True), ("released", False)):
        temporal = make_hmmc(fidelity=fidelity, max_frames=48).temporal
        own, theirs = temporal.resblocks[0].mlp.c_fc.weight, blocks[0].mlp.c_fc.weight
        assert torch.equal(own, theirs) == copied
        spread = temporal.frame_position_embeddings.weight.std()
        assert (0.9 < spread < 1.1) != copied
