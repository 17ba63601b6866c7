"""HMMC's losses: naive loops, and what must not change them."""

import math

import torch
import torch.nn.functional as F

from tests.fakes import ragged
from tvrkit.losses import momentum as losses

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


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


def test_fast_and_plain_losses_agree():
    text, frames, _ = ragged(5, 5, 4, 8)
    keys, text_key = torch.randn_like(frames), torch.randn_like(text)
    queue, frame_queue = (F.normalize(torch.randn(8, size), dim=0) for size in (7, 9))
    fast = losses.neighbour_frames(frames, keys, queue, temperature=0.1)
    torch.testing.assert_close(fast, losses.neighbour_frames_plain(frames, keys, queue, 0.1))
    inputs = (frames, keys, frame_queue, text, text_key, queue)
    fast = losses.frame_text(*inputs, temperature=0.1)
    torch.testing.assert_close(fast, losses.frame_text_plain(*inputs, 0.1))


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


def test_frame_matching_of_distinct_pairs_is_the_plain_equation():
    cosine = torch.rand(5, 5, 3) * 2 - 1
    plain = losses.frame_matching_plain(cosine, 5.0)
    torch.testing.assert_close(losses.frame_matching(cosine, logit_scale=5.0), plain, **CLOSE)


def test_queue_contrast_of_a_perfect_match_is_small():
    key = torch.eye(4)
    queue = -torch.eye(4)
    assert losses.queue_contrast(key, key, queue, temperature=0.07) < 1e-4
    assert losses.queue_contrast(key, -key, -queue, temperature=0.07) > 1 / math.e
