"""HMMC: what was corrected, by its properties. Released numbers are in the parity table."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from parity import LinearTowers

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.hmmc import (
    HMMC,
    HMMCPretraining,
    PretrainingSettings,
    Settings,
    WordHead,
    mask_words,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
WIDTH, VOCABULARY = 32, 60


def make_batch(rows=6, words=10, frames=4, seed=0, tags=False):
    random = torch.Generator().manual_seed(seed)
    token_mask = torch.arange(words) < torch.randint(3, words + 1, (rows, 1), generator=random)
    frame_mask = torch.arange(frames) < torch.randint(1, frames + 1, (rows, 1), generator=random)
    frame_mask[0, :2] = True
    tokens = torch.randint(VOCABULARY, (rows, words), generator=random)
    pixels = torch.randn(rows, frames, 3, 2, 2, generator=random)
    extras = {"tag_tokens": tokens.flip(0), "tag_mask": token_mask.flip(0)} if tags else {}
    order = torch.arange(rows)
    return TextVideoBatch(
        tokens * token_mask, token_mask, token_mask.long(), pixels, frame_mask, order, order, extras
    )


def make(cls=HMMC, **changes):
    torch.manual_seed(1)
    settings = PretrainingSettings if cls is HMMCPretraining else Settings
    small = {"temporal_layers": 1, "max_frames": 12}
    if cls is HMMCPretraining:
        small |= {
            "queue_size": 10,
            "frame_queue_size": 23,
            "projector_width": 16,
            "mask_share": 0.5,
        }
    return cls(LinearTowers(WIDTH), settings(**(small | changes)))


def loss_of(method, batch):
    torch.manual_seed(2)
    return method.loss(method.encode_text(batch), method.encode_video(batch), batch)


def noisy(batch):
    """The same batch with other content, and more of it, in its padding."""
    pixels = torch.where(batch.frame_mask[:, :, None, None, None], batch.frames, torch.tensor(9.0))
    return dataclasses.replace(
        batch,
        frames=torch.cat([pixels, torch.randn_like(pixels)], dim=1),
        frame_mask=torch.cat([batch.frame_mask, torch.zeros_like(batch.frame_mask)], dim=1),
    )


# --- Fine-tuning
#  --------------------------------------------------------------------------------------------


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


# --- Pre-training
#  -------------------------------------------------------------------------------------------


def test_nothing_masked_is_no_loss_but_not_nan():
    head, words = WordHead(WIDTH, VOCABULARY), torch.randn(2, 3, WIDTH, requires_grad=True)
    loss = head.loss(words, torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0
    assert words.grad.eq(0).all()


def test_masking_takes_real_words_only_in_the_stated_shares():
    torch.manual_seed(0)
    mask = torch.arange(12) < torch.randint(3, 13, (4000, 1))
    tokens = torch.randint(1, 50, (4000, 12)) * mask
    masked, labels = mask_words(tokens, mask, share=0.15, mask_token=57, vocabulary=50)
    chosen = labels != -100
    inner = mask & mask.roll(-1, 1) & (torch.arange(12) > 0) & (torch.arange(12) < 11)
    assert not (chosen & ~inner).any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen])
    assert (chosen.sum() / inner.sum()).item() == pytest.approx(0.15, abs=0.01)
    assert (masked[chosen] == 57).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (masked[chosen] == tokens[chosen]).float().mean().item() == pytest.approx(
        0.1 + 0.1 / 50, abs=0.015
    )


def test_pretraining_ignores_padding_when_corrected():
    batch = make_batch()
    for fidelity, same in (("corrected", True), ("released", False)):
        method = make(HMMCPretraining, fidelity=fidelity)
        state = {key: value.clone() for key, value in method.state_dict().items()}
        first = loss_of(method, batch)["loss"]
        pushed = {key: value.clone() for key, value in method.queues.state_dict().items()}
        method.load_state_dict(state)
        second = loss_of(method, noisy(batch))["loss"]
        assert torch.allclose(first, second, atol=1e-4) == same
        queues = method.queues.state_dict()
        assert (
            all(torch.allclose(queues[key], value, atol=1e-5) for key, value in pushed.items())
            == same
        )


def test_losses_see_the_queue_before_the_push_and_keys_after_the_momentum_update():
    method, batch = make(HMMCPretraining, momentum=0.0), make_batch()
    with torch.no_grad():
        method.backbone.clip.visual.proj.weight += 1
    before = method.queues["video"].keys.clone()
    method.before_step()
    assert torch.equal(
        method.slow["backbone"].clip.visual.proj.weight, method.backbone.clip.visual.proj.weight
    )
    video = method.encode_video(batch)
    torch.testing.assert_close(video.extras["video_key"], video.video)
    parts = method.loss(method.encode_text(batch), video, batch)
    assert not torch.equal(method.queues["video"].keys, before)
    parts["loss"].backward()  # the queue has changed since: what backward needs must not have
    torch.testing.assert_close(
        method.queues["video"].keys[:, :6].T, F.normalize(video.video.detach(), dim=-1)
    )


def test_tags_count_as_a_second_text():
    method, batch = make(HMMCPretraining, mask_share=0.0), make_batch(tags=True)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    both = loss_of(method, batch)
    method.load_state_dict(state)
    title = loss_of(method, dataclasses.replace(batch, extras={}))
    method.load_state_dict(state)
    method.queues["title"].keys.copy_(method.queues["tag"].keys)
    swapped = dataclasses.replace(
        batch, tokens=batch.extras["tag_tokens"], token_mask=batch.extras["tag_mask"], extras={}
    )
    tag = loss_of(method, swapped)
    for part in ("vtm", "ftm"):
        torch.testing.assert_close(both[part], (title[part] + tag[part]) / 2)


def test_pretraining_scores_as_finetuning_does():
    batch, pretrained = make_batch(), make(HMMCPretraining).eval()
    finetuned = make().eval()
    state = pretrained.state_dict()
    finetuned.load_state_dict({key: state[key] for key in finetuned.state_dict()})
    scores = [
        m.similarity(m.encode_text(batch), m.encode_video(batch)) for m in (pretrained, finetuned)
    ]
    assert torch.equal(*scores)
    assert pretrained.encode_text(batch).extras == {}
