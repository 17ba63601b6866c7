"""TPM-CL: its parts against loops and by their properties (released numbers: test_parity)."""

import pytest
import torch
from torch.nn.functional import normalize

from tests.fakes import FRAMES, WIDTH, WORDS
from tvrkit.data.batch import inner_words
from tvrkit.models.similarity import token_interaction, token_weight
from tvrkit.models.tpm import (
    MARGINS,
    POOLING,
    Pairs,
    PartialOrder,
    TokenWeightPredictor,
    TPMSettings,
    matched_interaction,
    select_tokens,
)
from tvrkit.settings import parse

KINDS = ("linear", *POOLING)
SMALL = TPMSettings(max_words=WORDS, max_frames=FRAMES)


@pytest.fixture
def pairs():
    random = torch.Generator().manual_seed(5)
    sentence, words, frames = (
        normalize(torch.randn(4, *shape, WIDTH, generator=random), dim=-1)
        for shape in ((), (WORDS,), (FRAMES,))
    )
    word_mask = torch.arange(WORDS) < torch.tensor([7, 3, 4, 2])[:, None]
    frame_mask = torch.arange(FRAMES) < torch.tensor([5, 1, 4, 3])[:, None]
    return Pairs(sentence, words, frames, word_mask, frame_mask)


def test_selection_masks_the_most_important_tokens():
    tokens, weight = (
        torch.ones(2, 4, 3),
        torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.97, 0.01, 0.01, 0.01]]),
    )
    kept, policy = select_tokens(tokens, weight, 0.75)
    assert policy.tolist() == [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    assert torch.equal(kept, tokens * policy[..., None])
    assert select_tokens(tokens, weight, 0.0)[1].min() == 1


def test_the_token_that_crosses_the_threshold_is_masked_by_name():
    tokens = torch.ones(2, 4, 3)
    weight = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.97, 0.01, 0.01, 0.01]])
    _, policy = select_tokens(tokens, weight, 0.75, mask_crossing=True)
    assert policy.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]


def test_start_and_end_tokens_stay_out_of_the_selection_by_name(pairs):
    order = PartialOrder(WIDTH, TPMSettings(max_words=WORDS, max_frames=FRAMES, mask_ends=False))
    maps = order.select(pairs)[1]
    inner, weight = inner_words(pairs.word_mask), maps["partial_word_weight"]
    assert inner.any(1).tolist() == [True, True, True, False], "the last caption is empty"
    assert weight[:3][~inner[:3]].abs().max() == 0
    assert (weight[3, :2] > 0).all(), "it keeps its ends"
    torch.testing.assert_close(weight.sum(1), torch.ones(4))
    assert (maps["word_kept"][:3][~inner[:3]] == 1).all()


@pytest.mark.parametrize("straight_through", [True, False])
def test_predictors_learn_from_masking_only_straight_through(pairs, straight_through):
    settings = TPMSettings(
        max_words=WORDS,
        max_frames=FRAMES,
        straight_through=straight_through,
        partial_order=["sentence_video"],
    )
    order = PartialOrder(WIDTH, settings)
    pairs.frames.requires_grad_()
    sum(order(pairs).values()).backward()
    gradient = order.frame_predictor.attn_proj[0].weight.grad
    assert (gradient is not None and bool(gradient.abs().max() > 0)) == straight_through


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
    order = PartialOrder(WIDTH, SMALL)
    whole = order(pairs)
    alone = [order(Pairs(*(x[i : i + 1] for x in pairs))) for i in range(4)]
    assert list(whole) == list(MARGINS)
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean())


def test_partial_words_are_normalised_where_corrected(pairs):
    """Finding 6: a short g' scores low whatever it says."""
    torch.manual_seed(0)
    released, corrected = PartialOrder(WIDTH, SMALL), PartialOrder(WIDTH, SMALL)
    released.normalise_partial = False
    corrected.load_state_dict(released.state_dict())
    scores = [order.scores(pairs) for order in (released, corrected)]
    assert (scores[0]["g',v"].abs() < scores[1]["g',v"].abs()).all()
    for name in ("t,v", "t,v'", "g,v", "g,v'"):
        assert torch.equal(scores[0][name], scores[1][name])


def test_other_sizes_and_names_are_refused(pairs):
    order = PartialOrder(WIDTH, SMALL)
    fewer = pairs._replace(words=pairs.words[:, 1:], word_mask=pairs.word_mask[:, 1:])
    message = r"expected 5 query and 7 key tokens, got 5 and 6 \(method.max_words"
    with pytest.raises(ValueError, match=message):
        order(fewer)
    with pytest.raises(ValueError, match=r"method\.partial_order\.0: .*'grounded_text'"):
        parse(TPMSettings, {"partial_order": ["all"]}, "method")
    with pytest.raises(ValueError, match=r"method\.predictor: .*'attention_max'"):
        parse(TPMSettings, {"predictor": "mlp"}, "method")
