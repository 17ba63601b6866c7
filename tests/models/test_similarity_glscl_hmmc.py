"""Scores and losses of GLSCL and HMMC: naive loops, and what must not change them."""

import math

import pytest
import torch
import torch.nn.functional as F

from tvrkit.losses import contrastive as losses
from tvrkit.models import similarity

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


# --- GLSCL
#  ------------------------------------------------------------------------------------------------


def ragged(texts, videos, frames, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, frames + 1, (videos,), generator=random)
    mask = torch.arange(frames) < lengths[:, None]
    features = torch.randn(videos, frames, width, generator=random)
    return torch.randn(texts, width, generator=random), features, mask


def test_conditioned_pooling_equals_a_loop():
    sentence, frames, mask = ragged(7, 4, 5, 16)
    scores = similarity.conditioned_pooling(sentence, frames, mask, temperature=2.0)
    for a, s in enumerate(sentence):
        for b, (video, valid) in enumerate(zip(frames, mask, strict=True)):
            weight = torch.softmax(video[valid] @ s / 2.0, dim=0)
            expected = F.cosine_similarity(s, weight @ video[valid], dim=0)
            torch.testing.assert_close(scores[a, b], expected, **CLOSE)


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
    with pytest.raises(ValueError, match="video 1 has no valid token"):
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


def test_consistency_as_the_paper_has_it_ignores_the_batch_size():
    text, video = torch.randn(2, 4, 8, 16).unbind()
    settings = {"target": 0.75, "weight": 0.02}
    once = losses.concept_consistency(text, video, **settings)
    tiled = losses.concept_consistency(text.repeat(5, 1, 1), video.repeat(5, 1, 1), **settings)
    torch.testing.assert_close(once, tiled)
    with pytest.raises(ValueError, match="batch_mean"):
        losses.concept_consistency(text, video, reduction="sum", **settings)


def test_diversity_is_zero_for_orthogonal_concepts_and_margin_counts():
    concepts = torch.eye(4)[None].expand(3, 4, 4)
    assert losses.concept_diversity(concepts, margin=0.9) == 0
    assert losses.concept_diversity(torch.ones(3, 4, 4), margin=0.1).item() == pytest.approx(0.2)
    assert losses.concept_diversity(concepts[:, :1], margin=0.1) == 0


# --- HMMC
#  ------------------------------------------------------------------------------------------------


def contrast_loop(query, key, queue, temperature):
    total = 0.0
    for q, k in zip(F.normalize(query, dim=-1), F.normalize(key, dim=-1), strict=True):
        logits = torch.cat([(q @ k)[None], q @ queue]) / temperature
        total += -logits.log_softmax(0)[0]
    return total / len(query)


def test_masked_frame_losses_equal_loops():
    text, frames, mask = ragged(5, 5, 4, 8)
    keys, text_key = torch.randn_like(frames), torch.randn_like(text)
    queue, frame_queue = (F.normalize(torch.randn(8, size), dim=0) for size in (7, 9))
    self_terms, cross_terms = [], []
    for b in range(5):
        for f in range(4):
            if not mask[b, f]:
                continue
            cross_terms.append(
                contrast_loop(text[b : b + 1], keys[b, f : f + 1], frame_queue, 0.1)
                + contrast_loop(frames[b, f : f + 1], text_key[b : b + 1], queue, 0.1)
            )
            if f + 1 < 4 and mask[b, f + 1]:
                self_terms.append(
                    contrast_loop(frames[b, f : f + 1], keys[b, f + 1 : f + 2], frame_queue, 0.1)
                    + contrast_loop(frames[b, f + 1 : f + 2], keys[b, f : f + 1], frame_queue, 0.1)
                )
    own = losses.neighbour_frames(frames, keys, frame_queue, mask, temperature=0.1)
    cross = losses.frame_text(
        frames, keys, frame_queue, text, text_key, queue, mask, temperature=0.1
    )
    torch.testing.assert_close(own, torch.stack(self_terms).mean(), **CLOSE)
    torch.testing.assert_close(cross, torch.stack(cross_terms).mean(), **CLOSE)


def test_neighbours_of_a_single_frame_are_no_loss():
    frames = torch.randn(3, 1, 8, requires_grad=True)
    loss = losses.neighbour_frames(frames, torch.randn(3, 1, 8), torch.randn(8, 5), temperature=0.1)
    loss.backward()
    assert loss == 0


def frame_matching_loop(similarity_, mask, positives, scale):
    total, count = 0.0, 0
    for i in range(len(mask)):
        for f in range(mask.shape[1]):
            if mask[i, f]:
                rivals = [j for j in range(len(mask)) if j == i or not positives[i, j]]
                shown = [j for j in rivals if mask[j, f]]
                total -= (scale * similarity_[i, shown, f]).log_softmax(0)[shown.index(i)]
                total -= (scale * similarity_[rivals, i, f]).log_softmax(0)[rivals.index(i)]
                count += 1
    return total / count


def test_frame_matching_with_masks_and_shared_videos_equals_a_loop():
    _, _, mask = ragged(6, 6, 4, 8)
    video_index = torch.tensor([3, 1, 3, 0, 2, 1])
    positives = video_index[:, None] == video_index
    cosine = (torch.rand(6, 6, 4) * 2 - 1).requires_grad_()
    loss = losses.frame_matching(cosine, mask, logit_scale=5.0, positives=positives)
    torch.testing.assert_close(loss, frame_matching_loop(cosine, mask, positives, 5.0), **CLOSE)
    (gradient,) = torch.autograd.grad(loss, cosine)
    assert gradient.isfinite().all()
    padded = cosine.detach().masked_fill(~mask, 7.0)
    torch.testing.assert_close(
        losses.frame_matching(padded, mask, logit_scale=5.0, positives=positives), loss.detach()
    )


def test_queue_contrast_of_a_perfect_match_is_small():
    key = torch.eye(4)
    queue = -torch.eye(4)
    assert losses.queue_contrast(key, key, queue, temperature=0.07) < 1e-4
    assert losses.queue_contrast(key, -key, -queue, temperature=0.07) > 1 / math.e
