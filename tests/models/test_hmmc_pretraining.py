"""HMMC's pre-training: masking, queues and keys, by their properties (numbers: test_parity)."""

import dataclasses
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvrkit.data.batch import uniform
from tvrkit.models.hmmc_pretraining import HMMCPretraining, Perceptron, WordHead, mask_words

from .hmmc_batches import VOCABULARY, WIDTH, loss_of, make, make_batch, noisy


def test_nothing_masked_is_no_loss_but_not_nan():
    head, words = WordHead(WIDTH, VOCABULARY), torch.randn(2, 3, WIDTH, requires_grad=True)
    loss = head.loss(words, torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0
    assert words.grad.eq(0).all()


@pytest.mark.parametrize("share", [1.0, 0.15])
def test_words_are_predicted_where_there_is_a_label_and_nowhere_else(share):
    torch.manual_seed(0)
    head, words = WordHead(WIDTH, VOCABULARY), torch.randn(40, 10, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (40, 10)).where(torch.rand(40, 10) < 0.15, -100)
    chosen = labels != -100
    expected = F.cross_entropy(head(words[chosen]), labels[chosen])
    found = head.loss(words, labels, share)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, words)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][~chosen].eq(0).all()


def test_padding_stays_out_of_batch_norm():
    torch.manual_seed(0)
    mine, mask = Perceptron(8, 16), torch.rand(5, 4) < 0.6
    plain = nn.Sequential(*deepcopy(mine))
    for _ in range(3):
        frames = 3 + 2 * torch.randn(5, 4, 8)
        expected = plain(frames[mask])
        found = mine.on_valid(frames, mask)
        torch.testing.assert_close(found[mask], expected, atol=1e-5, rtol=1e-4)
        assert found[~mask].eq(0).all()
        found.square().sum().backward()
        expected.square().sum().backward()
    torch.testing.assert_close(mine.state_dict(), plain.state_dict())
    for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)


def test_masking_takes_real_words_only_in_the_stated_shares():
    torch.manual_seed(0)
    mask = torch.arange(12) < torch.randint(3, 13, (4000, 1))
    tokens = torch.randint(1, 50, (4000, 12)) * mask
    draws = uniform(torch.arange(4000), 3, 12)
    masked, labels = mask_words(tokens, mask, draws, share=0.15, mask_token=57, vocabulary=50)
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


def test_what_is_masked_is_of_the_item():
    """Whatever batch it is in; only a batch without seeds draws from torch's generator."""
    method, batch = make(HMMCPretraining), make_batch(tags=True)
    own = dataclasses.replace(batch, seed=torch.tensor([5, 3, 9, 5, 1, 0]))
    whole, part = method.encode_text(own), method.encode_text(own[2:4])
    for name in ("title_labels", "tag_labels"):
        assert torch.equal(whole.extras[name][2:4], part.extras[name])
    again = [method.encode_text(batch).extras["title_labels"] for _ in range(2)]
    assert not torch.equal(*again)


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
