"""Scores against their plain forms and loops, and what must not change them."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import normalize

from tests.fakes import ragged
from tvrkit.models import similarity
from tvrkit.models.similarity import second_look, token_interaction

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
TEXTS, VIDEOS, WORDS, FRAMES, WIDTH = 7, 5, 6, 4, 8


@pytest.fixture
def sides():
    """Ragged texts and videos; video 2 lacks its first frame, text 3 has a hole, video 4 a single
    frame."""
    random = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(TEXTS, WORDS, WIDTH, generator=random), dim=-1)
    video = normalize(torch.randn(VIDEOS, FRAMES, WIDTH, generator=random), dim=-1)
    text_mask = torch.arange(WORDS) < torch.tensor([6, 2, 3, 5, 1, 3, 6])[:, None]
    text_mask[3, 1] = False
    video_mask = torch.arange(FRAMES) < torch.tensor([4, 2, 4, 3, 1])[:, None]
    video_mask[2, 0] = False
    return text, video, text_mask, video_mask


def naive(
    text,
    video,
    text_mask,
    video_mask,
    *,
    text_weight=None,
    video_weight=None,
    second_frame,
    mask_fill,
):
    """The definition, one text, one video, one word at a time, in float64."""
    text, video, p, q = text.double(), video.double(), text_mask.double(), video_mask.double()
    p = p / p.sum(1, keepdim=True) if text_weight is None else p * text_weight
    q = q / q.sum(1, keepdim=True) if video_weight is None else q * video_weight
    score = torch.zeros(len(text), len(video), dtype=torch.float64)
    for a in range(len(text)):
        for b in range(len(video)):
            valid_words = [t for t in range(text.shape[1]) if text_mask[a, t]]
            valid_frames = [v for v in range(video.shape[1]) if video_mask[b, v]]
            product = text[a] @ video[b].T
            padded_words, padded_frames = (
                len(valid_words) < text.shape[1],
                len(valid_frames) < video.shape[1],
            )
            for t in valid_words:
                best = max(valid_frames, key=lambda v, t=t: product[t, v])
                value = product[t, best]
                if mask_fill == "zero" and padded_frames and value < 0:
                    value, best = torch.tensor(0.0), None
                score[a, b] += p[a, t] * value / 2
                others = [v for v in valid_frames if v != best]
                if second_frame and best is not None and others:
                    near = max(others, key=lambda v: video[b, best] @ video[b, v])
                    gain = (video[b, best] @ video[b, near]).clamp(min=0)
                    score[a, b] += p[a, t] * 0.5 * gain * product[t, near] / 2
            for v in valid_frames:
                value = max(product[t, v] for t in valid_words)
                if mask_fill == "zero" and padded_words:
                    value = value.clamp(min=0)
                score[a, b] += q[b, v] * value / 2
    return score


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("second_frame", [False, True])
@pytest.mark.parametrize("mask_fill", ["zero", "exclude"])
def test_equals_the_loops(sides, mask_fill, second_frame, weighted):
    options = {"second_frame": second_frame, "mask_fill": mask_fill}
    if weighted:
        options["text_weight"] = torch.rand(TEXTS, WORDS)
        options["video_weight"] = torch.rand(VIDEOS, FRAMES)
    expected = naive(*sides, **options).float()
    torch.testing.assert_close(token_interaction(*sides, **options), expected, atol=1e-6, rtol=1e-6)


def test_fast_and_plain_token_interaction_agree(sides):
    fast = token_interaction(*sides, second_frame=True, mask_fill="exclude")
    plain = similarity.token_interaction_plain(*sides)
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-6)


def test_boosted_words_weigh_double(sides):
    text, video, text_mask, video_mask = sides
    boosted = text_mask * torch.tensor([1, 2, 1, 1, 2, 1])
    expected = naive(text, video, boosted, video_mask, second_frame=False, mask_fill="zero").float()
    torch.testing.assert_close(
        token_interaction(text, video, boosted, video_mask), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("mask_fill", ["zero", "exclude"])
def test_chunks_change_nothing(sides, mask_fill, monkeypatch):
    options = {"second_frame": True, "mask_fill": mask_fill}
    whole = token_interaction(*sides, **options)
    for rows, block in ((1, 1), (6, 48), (1, 100)):
        monkeypatch.setattr(similarity, "ROWS", rows)
        monkeypatch.setattr(similarity, "TILE", block)
        torch.testing.assert_close(token_interaction(*sides, **options), whole, atol=1e-6, rtol=0)


def test_second_look_can_be_given(sides):
    _, video, _, video_mask = sides
    given = token_interaction(*sides, second_frame=second_look(video, video_mask))
    assert torch.equal(given, token_interaction(*sides, second_frame=True))


def test_second_look_finds_the_nearest_other_frame():
    video = normalize(torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2], [1.0, 0.05]]]), dim=-1)
    mask = torch.tensor([[True, True, True, False]])
    gain, index = second_look(video, mask, mask_fill="exclude")
    assert index[0, :2].tolist() == [1, 0]
    torch.testing.assert_close(gain[0, 0], video[0, 0] @ video[0, 1])
    assert gain[0, 2] == 0  # every other frame is dissimilar


def test_padding_changes_nothing_when_excluded(sides):
    text, video, text_mask, video_mask = sides
    options = {"second_frame": True, "mask_fill": "exclude"}
    before = token_interaction(*sides, **options)
    text = torch.where(text_mask[..., None], text, 50 * torch.randn_like(text))
    video = torch.where(video_mask[..., None], video, 50 * torch.randn_like(video))
    assert torch.equal(token_interaction(text, video, text_mask, video_mask, **options), before)
    longer = [torch.cat([x, torch.ones_like(x)], 1) for x in (text, video)]
    masks = [torch.cat([mask, torch.zeros_like(mask)], 1) for mask in (text_mask, video_mask)]
    torch.testing.assert_close(
        token_interaction(*longer, *masks, **options), before, atol=1e-6, rtol=0
    )


def test_zero_and_exclude_agree_without_padding(sides):
    text, video, *_ = sides
    masks = torch.ones(TEXTS, WORDS), torch.ones(VIDEOS, FRAMES)
    released, corrected = (
        token_interaction(text, video, *masks, second_frame=True, mask_fill=fill)
        for fill in ("zero", "exclude")
    )
    torch.testing.assert_close(released, corrected)


def test_order_of_texts_and_videos_changes_nothing(sides):
    text, video, text_mask, video_mask = sides
    rows, columns = torch.randperm(TEXTS), torch.randperm(VIDEOS)
    moved = token_interaction(
        text[rows], video[columns], text_mask[rows], video_mask[columns], second_frame=True
    )
    whole = token_interaction(*sides, second_frame=True)
    torch.testing.assert_close(moved, whole[rows][:, columns], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mask_fill", ["zero", "exclude"])
def test_gradient_is_the_derivative(sides, mask_fill):
    text, video, text_mask, video_mask = sides
    leaves = [x.double().requires_grad_() for x in (text[:4], video)]

    def score(text, video):
        return token_interaction(
            text, video, text_mask[:4], video_mask, second_frame=True, mask_fill=mask_fill
        )

    assert torch.autograd.gradcheck(score, leaves)


def test_padding_gets_no_gradient(sides):
    text, video, text_mask, video_mask = sides
    text.requires_grad_()
    video.requires_grad_()
    for fill in ("zero", "exclude"):
        score = token_interaction(
            text, video, text_mask, video_mask, second_frame=True, mask_fill=fill
        )
        grads = torch.autograd.grad(score.sum(), (text, video))
        for gradient, mask in zip(grads, (text_mask, video_mask), strict=True):
            assert gradient[~mask].abs().max() == 0
            assert (gradient[mask].abs().amax(-1) > 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, v, p, q: (t, v, p & False, q), "text 0: expected a valid token, got none"),
        (
            lambda t, v, p, q: (t, v, p, q * torch.tensor([1, 1, 1, 0, 1])[:, None]),
            "video 3: expected a valid token, got none",
        ),
        (
            lambda t, v, p, q: (t, v, p[:, 1:], q),
            r"text mask: expected shape \(7, 6\), got \(7, 5\)",
        ),
    ],
)
def test_bad_masks_are_named(sides, change, message):
    with pytest.raises(ValueError, match=message):
        token_interaction(*change(*sides))


def test_unknown_mask_fill_lists_the_choices(sides):
    with pytest.raises(ValueError, match="unknown mask_fill 'inf': expected one of exclude, zero"):
        token_interaction(*sides, mask_fill="inf")


# --- GLSCL and HMMC


def test_conditioned_pooling_equals_a_loop():
    sentence, frames, mask = ragged(7, 4, 5, 16)
    scores = similarity.conditioned_pooling(sentence, frames, mask, temperature=2.0)
    for a, s in enumerate(sentence):
        for b, (video, valid) in enumerate(zip(frames, mask, strict=True)):
            weight = torch.softmax(video[valid] @ s / 2.0, dim=0)
            expected = F.cosine_similarity(s, weight @ video[valid], dim=0)
            torch.testing.assert_close(scores[a, b], expected, **CLOSE)


def test_fast_and_plain_pooling_and_topk_agree():
    sentence, frames, mask = ragged(7, 4, 5, 16)
    fast = similarity.conditioned_pooling(sentence, frames, mask, temperature=2.0)
    plain = similarity.conditioned_pooling_plain(sentence, frames, mask, temperature=2.0)
    torch.testing.assert_close(fast, plain, **CLOSE)
    mask[:, :3] = True
    fast = similarity.topk_frame_similarity(sentence, frames, mask, k=3)
    plain = similarity.topk_frame_similarity_plain(sentence, frames, mask, k=3)
    torch.testing.assert_close(fast, plain, **CLOSE)


def test_topk_equals_a_loop():
    sentence, frames, mask = ragged(7, 4, 5, 16)
    scores = similarity.topk_frame_similarity(sentence, frames, mask, k=3)
    for a, s in enumerate(sentence):
        for b, (video, valid) in enumerate(zip(frames, mask, strict=True)):
            cosine = F.cosine_similarity(s, video[valid], dim=-1).sort(descending=True).values[:3]
            torch.testing.assert_close(scores[a, b], cosine.mean(), **CLOSE)


SCORES = {
    "conditioned": lambda s, f, m: similarity.conditioned_pooling(s, f, m, temperature=3.0),
    "topk": lambda s, f, m: similarity.topk_frame_similarity(s, f, m, k=2),
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_padding_and_chunking_never_change_a_score(score, monkeypatch):
    sentence, frames, mask = ragged(7, 5, 6, 16)
    expected = score(sentence, frames, mask)
    noisy = torch.where(mask[..., None], frames, 100 * torch.randn_like(frames))
    torch.testing.assert_close(score(sentence, noisy, mask), expected)
    longer = torch.cat([noisy, torch.randn(5, 3, 16)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(score(sentence, longer, longer_mask), expected)
    monkeypatch.setattr(similarity, "BLOCK", 50)
    torch.testing.assert_close(score(sentence, frames, mask), expected)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_refuse_a_video_without_frames(score):
    sentence, frames, mask = ragged(2, 3, 4, 8)
    mask[1] = False
    with pytest.raises(ValueError, match="video 1: expected a valid token, got none"):
        score(sentence, frames, mask)


def test_conditioned_pooling_survives_extreme_weights():
    sentence, frames, mask = ragged(3, 3, 4, 8)
    frames[:, 0] *= 1e3
    mask[:, 0] = False
    mask[:, 1] = True
    sentence.requires_grad_()
    scores = similarity.conditioned_pooling(sentence, frames, mask, temperature=0.01)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert sentence.grad.isfinite().all()
