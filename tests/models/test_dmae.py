"""DMAE: what a corrected method must keep (released numbers:
test_parity)."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.fakes import FRAMES, WIDTH, WORDS, TwoLayers
from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.dmae import DMAE
from tvrkit.models.similarity import token_weight
from tvrkit.models.tpm import MARGINS, POOLING

KINDS = ("linear", *POOLING)


@pytest.fixture
def batch():
    """Six captions of five videos, ragged on both sides."""
    random = torch.Generator().manual_seed(3)
    token_mask = torch.arange(WORDS) < torch.tensor([7, 3, 4, 6, 2, 5])[:, None]
    weight = torch.randint(1, 3, (6, WORDS), generator=random) * token_mask
    return TextVideoBatch(
        tokens=torch.randint(0, 40, (6, WORDS), generator=random),
        token_mask=token_mask,
        token_weight=weight,
        frames=torch.randint(0, 256, (6, FRAMES, 3, 2, 2), generator=random).to(torch.uint8),
        frame_mask=torch.arange(FRAMES) < torch.tensor([5, 2, 4, 3, 1, 5])[:, None],
        video_index=torch.tensor([0, 1, 2, 3, 4, 0]),
        caption_index=torch.arange(6),
    )


def build(**options):
    torch.manual_seed(0)
    settings = DMAE.Settings(max_words=WORDS, max_frames=FRAMES, temporal_layers=1, **options)
    return DMAE(TwoLayers(), settings)


def run(method, batch):
    text, video = method.encode_text(batch), method.encode_video(batch)
    return method.similarity(text, video), method.loss(text, video, batch)


EVERYTHING = [
    {"interaction": interaction, "head": head, "predictor": predictor}
    for interaction in ("ti", "wti", "att_ti", "att_wti")
    for head, predictor in (("meanP", "attention_max"), ("seqTransf", "linear"))
]


@pytest.mark.parametrize("options", EVERYTHING, ids=lambda options: "-".join(options.values()))
def test_padding_changes_nothing(batch, options):
    method = build(**options)
    score, loss = run(method, batch)
    noisy = replace(
        batch,
        tokens=torch.where(batch.token_mask, batch.tokens, 39 - batch.tokens),
        token_weight=torch.where(batch.token_mask, batch.token_weight, 2),
        frames=torch.where(
            batch.frame_mask[..., None, None, None], batch.frames, 255 - batch.frames
        ),
    )
    changed_score, changed_loss = run(method, noisy)
    torch.testing.assert_close(changed_score, score, atol=1e-6, rtol=1e-6)
    for name, part in loss.items():
        torch.testing.assert_close(changed_loss[name], part, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", EVERYTHING, ids=lambda options: "-".join(options.values()))
def test_order_of_the_batch_changes_nothing(batch, options):
    method = build(**options)
    score, loss = run(method, batch)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved_score, moved_loss = run(method, batch[order])
    torch.testing.assert_close(moved_score, score[order][:, order], atol=1e-6, rtol=1e-6)
    for name, part in loss.items():
        torch.testing.assert_close(moved_loss[name], part, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("predictor", KINDS)
@pytest.mark.parametrize("head", ["meanP", "seqTransf"])
def test_every_parameter_gets_a_gradient(batch, head, predictor):
    method = build(head=head, predictor=predictor)
    run(method, batch)[1]["loss"].backward()
    learnt = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    without = [name for name, p in learnt if p.grad is None or not p.grad.any()]
    assert without == []


def test_released_frame_predictor_learns_nothing(batch):
    """Finding 7: the hard selection passes no gradient."""
    method = build(fidelity="released", head="meanP")
    run(method, batch)[1]["loss"].backward()
    assert all(p.grad is None for p in method.partial_order.frame_predictor.parameters())


@pytest.mark.parametrize("fidelity", ["released", "corrected"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_batch_size_works(batch, fidelity, size):
    method = build(fidelity=fidelity)
    score, loss = run(method, batch[:size])
    assert score.shape == (size, size)
    assert loss["loss"].isfinite()
    loss["loss"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_similarity_is_the_same_in_training_and_evaluation_and_in_parts(batch):
    method = build()
    whole = run(method, batch)[0]
    method.eval()
    text = TextFeatures.cat([method.encode_text(batch[:4]), method.encode_text(batch[4:])])
    video = VideoFeatures.cat([method.encode_video(batch[:1]), method.encode_video(batch[1:])])
    torch.testing.assert_close(method.similarity(text, video), whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        method.similarity(text[:2], video[3:]), whole[:2, 3:], atol=1e-6, rtol=1e-6
    )


def test_textual_attention_boosts_words_only_where_corrected(batch):
    plain = replace(batch, token_weight=batch.token_mask.long())
    for fidelity, boosts in (("corrected", True), ("released", False)):  # finding 10
        method = build(fidelity=fidelity)
        weight, even = (method.encode_text(b).extras["word_weight"] for b in (batch, plain))
        assert torch.equal(weight, even) != boosts
        torch.testing.assert_close(weight.sum(1), torch.ones(6))  # finding 9: still a distribution
        assert weight[~batch.token_mask].abs().max() == 0


def test_boosted_weights_sum_to_more_than_one_as_released():
    tokens, mask = torch.randn(2, 4, WIDTH), torch.tensor([[1, 2, 2, 1], [1, 2, 0, 0]])
    head = nn.Linear(WIDTH, 1, bias=False)
    assert (token_weight(tokens, mask, head, renormalise=False).sum(1) > 1).all()
    torch.testing.assert_close(token_weight(tokens, mask, head).sum(1), torch.ones(2))
    expected = torch.tensor([[1, 2, 2, 1], [2, 4, 0, 0]]) / 6
    torch.testing.assert_close(token_weight(tokens, mask, None), expected)


def test_switches_do_what_they_say(batch):
    names = ["grounded_text"]
    assert set(run(build(partial_order=names), batch)[1]) == {"loss", "neg_nce", "grounded_text"}
    off = build(partial_order=[], head="meanP")
    loss = run(off, batch)[1]
    assert set(loss) == {"loss", "neg_nce"}
    assert loss["loss"] == loss["neg_nce"]
    assert off.partial_order is None
    without = build(partial_order=[], negative_weight=0.0, head="meanP")
    assert run(without, batch)[1]["loss"] < loss["loss"]
    wider = build(partial_order=[], head="meanP", mining_margin=3.0)
    assert run(wider, batch)[1]["loss"] != loss["loss"]
    plain = build(partial_order=[], head="meanP", second_frame=False)
    assert not torch.equal(run(plain, batch)[0], run(off, batch)[0])


def test_explain_names_what_the_score_is_made_of(batch):
    method = build(head="meanP")
    text, video = method.encode_text(batch), method.encode_video(batch)
    maps = method.explain(text, video)
    assert maps["word_frame"].shape == (6, WORDS, FRAMES)
    best = maps["best_frame"][..., None]
    first = maps["word_frame"].gather(2, best)[..., 0]
    rows = (
        maps["second_frame"].gather(1, maps["best_frame"]),
        maps["second_gain"].gather(1, maps["best_frame"]),
    )
    second = maps["word_frame"].gather(2, rows[0][..., None])[..., 0] * rows[1]
    text_side = ((first + 0.5 * second) * maps["word_weight"]).sum(1)
    by_word = maps["word_frame"].masked_fill(~text.mask[..., None], -torch.inf).amax(1)
    video_side = (by_word * maps["frame_weight"]).sum(1)
    sentence = build(head="meanP", interaction="wti").similarity(text, video).diagonal()
    expected = (sentence + (text_side + video_side) / 2) / 2
    torch.testing.assert_close(method.similarity(text, video).diagonal(), expected)
    assert set(maps["word_kept"].unique().tolist()) <= {0.0, 1.0}
    margins = method.loss(text, video, batch)
    for name in MARGINS:
        whole, half, masked = maps[f"order_{name}"].T
        gap = method.settings.partial_margin - (whole - masked)
        torch.testing.assert_close(gap.relu().mean(), margins[name].detach())
        assert not torch.equal(half, masked)
    assert not any(tensor.requires_grad for tensor in maps.values())
    torch.testing.assert_close(maps["partial_frame_weight"].sum(1), torch.ones(6))
    assert maps["partial_frame_weight"][~batch.frame_mask].abs().max() == 0
