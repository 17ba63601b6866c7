"""DMAE: parts of TPM-CL against loops, and what a corrected method must keep (released numbers:
test_parity)."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.models.dmae import (
    DMAE,
    MARGINS,
    POOLING,
    PartialOrder,
    TokenWeightPredictor,
    matched_interaction,
    select_tokens,
    token_weight,
)
from tvrkit.models.similarity import token_interaction

WIDTH, WORDS, FRAMES, KINDS = 16, 7, 5, ("linear", *POOLING)


class TwoLayers(nn.Module):
    """The backbone's interface over one embedding and one linear layer."""

    def __init__(self):
        super().__init__()
        self.width = self.text_width = WIDTH
        self.context_length, self.text_blocks, self.text_positions = WORDS, None, None
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.words, self.image = nn.Embedding(40, WIDTH), nn.Linear(3 * 2 * 2, WIDTH)

    def encode_text(self, tokens, mask):
        words = self.words(tokens)
        return words, words[torch.arange(len(tokens)), mask.sum(1) - 1]

    def encode_frames(self, frames):
        return self.image(frames.flatten(2).float() / 255 - 0.5)


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


# --- TPM-CL
#  ------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs():
    random = torch.Generator().manual_seed(5)
    sentence, words, frames = (
        normalize(torch.randn(4, *shape, WIDTH, generator=random), dim=-1)
        for shape in ((), (WORDS,), (FRAMES,))
    )
    word_mask = torch.arange(WORDS) < torch.tensor([7, 3, 4, 2])[:, None]
    frame_mask = torch.arange(FRAMES) < torch.tensor([5, 1, 4, 3])[:, None]
    return sentence, words, frames, word_mask, frame_mask


def test_selection_masks_the_most_important_tokens():
    tokens, weight = (
        torch.ones(2, 4, 3),
        torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.97, 0.01, 0.01, 0.01]]),
    )
    kept, policy = select_tokens(tokens, weight, 0.75)
    assert policy.tolist() == [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    assert torch.equal(kept, tokens * policy[..., None])
    assert select_tokens(tokens, weight, 0.0)[1].min() == 1


def test_straight_through_passes_the_opposite_gradient():
    weight = torch.tensor([[0.1, 0.3, 0.2, 0.4]], requires_grad=True)
    tokens = torch.randn(1, 4, 3)
    kept, policy = select_tokens(tokens, weight, 0.75, straight_through=True)
    assert torch.equal(policy, select_tokens(tokens, weight, 0.75)[1])
    (gradient,) = torch.autograd.grad(kept.sum(), weight)
    torch.testing.assert_close(gradient, -tokens.sum(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_leave_padding_out(pairs, kind):
    _, words, frames, word_mask, frame_mask = pairs
    predictor = TokenWeightPredictor(kind, WIDTH, FRAMES, WORDS)
    weight = predictor(frames, words, frame_mask, word_mask)
    assert weight[~word_mask].abs().max() == 0
    torch.testing.assert_close(weight.sum(1), torch.ones(4))
    assert predictor(frames, words)[~word_mask].abs().max() > 0  # finding 5
    noisy = [
        torch.where(m[..., None], x, x + 9) for x, m in ((frames, frame_mask), (words, word_mask))
    ]
    torch.testing.assert_close(predictor(*noisy, frame_mask, word_mask), weight)


@pytest.mark.parametrize("mask_fill", ["zero", "exclude"])
def test_matched_interaction_is_the_diagonal(pairs, mask_fill):
    sentence, _, frames, _, mask = pairs
    weight = token_weight(frames, mask, None)
    whole = token_interaction(
        sentence[:, None], frames, torch.ones(4, 1), mask, mask_fill=mask_fill
    )
    matched = matched_interaction(sentence, frames, mask, weight, mask_fill=mask_fill)
    torch.testing.assert_close(matched, whole.diagonal())


def test_margins_of_a_batch_are_the_mean_over_its_pairs(pairs):
    torch.manual_seed(0)
    order = PartialOrder(WIDTH, WORDS, FRAMES)
    whole = order(*pairs)
    alone = [order(*(x[i : i + 1] for x in pairs)) for i in range(4)]
    assert list(whole) == list(MARGINS)
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean())


def test_partial_words_are_normalised_where_corrected(pairs):
    """Finding 6: a short g' scores low whatever it says."""
    torch.manual_seed(0)
    released, corrected = (
        PartialOrder(WIDTH, WORDS, FRAMES, normalise_partial=n) for n in (False, True)
    )
    corrected.load_state_dict(released.state_dict())
    scores = [order.scores(*pairs) for order in (released, corrected)]
    assert (scores[0]["g',v"].abs() < scores[1]["g',v"].abs()).all()
    for name in ("t,v", "t,v'", "g,v", "g,v'"):
        assert torch.equal(scores[0][name], scores[1][name])


def test_other_sizes_and_names_are_refused(pairs):
    sentence, words, frames, word_mask, frame_mask = pairs
    order = PartialOrder(WIDTH, WORDS, FRAMES)
    with pytest.raises(
        ValueError, match=r"expected 5 query and 7 key tokens, got 5 and 6 \(method.max_words"
    ):
        order(sentence, words[:, 1:], frames, word_mask[:, 1:], frame_mask)
    with pytest.raises(ValueError, match="unknown margin 'all': expected one of grounded_text"):
        PartialOrder(WIDTH, WORDS, FRAMES, margins=("all",))
    with pytest.raises(ValueError, match="unknown predictor 'mlp'"):
        TokenWeightPredictor("mlp", WIDTH, FRAMES, WORDS)
