"""DMAE with a queue and a moving margin: DMAE where both are off, a loop's numbers where they are
on."""

import sys
from dataclasses import replace

import pytest
import torch

from tests.fakes import FRAMES, WORDS, TwoLayers
from tvrkit.data.batch import TextVideoBatch
from tvrkit.models import method_class
from tvrkit.models.dmae import DMAE

ExtendedDMAE = method_class("examples.dmae_extended:ExtendedDMAE")
FeatureQueue = sys.modules[ExtendedDMAE.__module__].FeatureQueue
SIZES = {"max_words": WORDS, "max_frames": FRAMES, "temporal_layers": 1}
INTERACTIONS = [
    {"interaction": "ti", "second_frame": False},
    {"interaction": "att_wti"},
    {"fidelity": "released"},
]


def build(cls=ExtendedDMAE, **options):
    torch.manual_seed(0)
    return cls(TwoLayers(), cls.Settings(**SIZES, **options))


def draw(seed, videos):
    """A batch of captions of the videos with these numbers, ragged on both sides."""
    random, count = torch.Generator().manual_seed(seed), len(videos)
    token_mask = torch.arange(WORDS) < torch.randint(2, WORDS + 1, (count, 1), generator=random)
    return TextVideoBatch(
        tokens=torch.randint(0, 40, (count, WORDS), generator=random),
        token_mask=token_mask,
        token_weight=torch.randint(1, 3, (count, WORDS), generator=random) * token_mask,
        frames=torch.randint(0, 256, (count, FRAMES, 3, 2, 2), generator=random).to(torch.uint8),
        frame_mask=torch.arange(FRAMES)
        < torch.randint(1, FRAMES + 1, (count, 1), generator=random),
        video_index=torch.tensor(videos),
        caption_index=torch.arange(count),
    )


BATCHES = [
    draw(1, [0, 1, 2, 3]),
    draw(2, [4, 5, 0]),
    draw(3, [6, 7, 1, 8, 6]),
    draw(4, [9, 2, 3, 5]),
]


def features(method, batch):
    return method.encode_text(batch), method.encode_video(batch)


def step(method, batch):
    method.before_step()
    return method.loss(*features(method, batch), batch)


def naive(scores, same, to_videos, to_texts, known, scale, margin, least):
    """NegNCE of a batch and a queue from its definition, row by row, in both directions; P in
    [least, 1 - least]."""
    scores, to_videos, to_texts, total = scores.double(), to_videos.double(), to_texts.double(), 0.0
    for s, p, extra in ((scores, same, to_videos), (scores.T, same.T, to_texts)):
        count, positive, negative = len(s), [], []
        best = [max(s[i, j] for j in range(count) if p[i, j]) for i in range(count)]
        for i in range(count):
            batch = {j: s[i, j] for j in range(count) if j == i or not p[i, j]}
            queue = {k: extra[i, k] for k in range(extra.shape[1]) if not known[i, k]}
            partition = sum(torch.exp(scale * each) for each in [*batch.values(), *queue.values()])
            positive.append(
                -torch.log((torch.exp(scale * s[i, i]) / partition).clamp(least, 1 - least))
            )
            own = [max(s[k, j] for k in range(count) if p[k, j]) for j in range(count)]
            hard = [
                x
                for j, x in batch.items()
                if j != i and (x > best[i] - margin or x > own[j] - margin)
            ]
            hard += [x for x in queue.values() if x > best[i] - margin]
            negative += [
                -torch.log(1 - (torch.exp(scale * x) / partition).clamp(least, 1 - least))
                for x in hard
            ]
        total = total + sum(positive) / count / 2
        if negative:
            total = total + 0.5 * sum(negative) / len(negative) / 2
    return total


@pytest.mark.parametrize("options", INTERACTIONS, ids=str)
def test_without_queue_and_with_a_constant_margin_it_is_dmae(options):
    plain, ours = (
        build(DMAE, **options),
        build(mining_margin=0.1, final_margin=0.1, queue=0, **options),
    )
    plain.settings = DMAE.Settings(**SIZES, mining_margin=0.1, **options)
    for batch in BATCHES:
        expected, found = step(plain, batch), step(ours, batch)
        assert {name: part.item() for name, part in found.items()} == {
            n: part.item() for n, part in expected.items()
        }
        expected["loss"].backward()
        found["loss"].backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("options", INTERACTIONS, ids=str)
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_the_loss_with_a_queue_is_that_of_a_loop(options, margin):
    method = build(queue=6, mining_margin=margin, **options)
    for batch in BATCHES[:2]:
        step(method, batch)
    batch, pairs = (
        BATCHES[2],
        TextVideoBatch.cat(BATCHES[:2])[1:],
    )  # seven were pushed, six are kept
    text, video = features(method, batch)
    old_text, old_video = features(method, pairs)
    known = batch.video_index[:, None] == pairs.video_index
    assert known.any()
    own = batch.video_index if method.corrected else batch.caption_index
    same = own[:, None] == own
    old = method.similarity(text, old_video), method.similarity(old_text, video).T
    scale, least = (method.backbone.logit_scale.exp(), 0.0) if method.corrected else (100.0, 1e-6)
    expected = naive(method.similarity(text, video), same, *old, known, scale, margin, least)
    found = step(method, batch)["neg_nce"]
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_the_first_batch_finds_an_empty_queue():
    first = BATCHES[0]
    assert step(build(queue=16), first)["loss"] == step(build(DMAE), first)["loss"]


@pytest.mark.parametrize("known", [True, False])
def test_a_queued_pair_of_the_same_video_is_no_negative(known):
    method, alone = build(queue=1), draw(5, [0])
    with torch.no_grad():
        step(
            method, alone
        )  # the queue now holds the very pair it will meet: the hardest negative there is
        method.queue.video_index.fill_(0 if known else 7)
        loss = method.contrast(*features(method, alone), alone)
    if known:
        assert loss == 0  # one pair, no negative
    else:
        # P = 1/2 either way, and nothing is above its own match by a margin of 0
        torch.testing.assert_close(loss, torch.tensor(2.0).log(), atol=1e-4, rtol=1e-4)


def test_the_queue_takes_no_gradient_and_gives_finite_ones():
    method = build(queue=512)
    for batch in BATCHES:
        step(method, batch)["loss"].backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not any(buffer.requires_grad for buffer in method.queue.buffers())


def test_evaluation_neither_reads_nor_fills_the_queue():
    plain, method = build(DMAE).eval(), build(queue=8)
    step(method, BATCHES[0])
    method.eval()
    for batch in BATCHES[1:]:
        assert torch.equal(
            method.similarity(*features(method, batch)), plain.similarity(*features(plain, batch))
        )
        expected = plain.loss(*features(plain, batch), batch)["loss"]
        assert method.loss(*features(method, batch), batch)["loss"] == expected
    assert method.queue.pushed == len(BATCHES[0])


def test_a_resumed_run_has_the_queue_and_the_margin():
    options = {"queue": 5, "mining_margin": 0.3, "final_margin": 0.0, "margin_steps": 4}
    whole, cut = build(**options), build(**options)
    for batch in BATCHES[:2]:
        step(whole, batch)
        step(cut, batch)
    again = build(**options)
    again.load_state_dict(cut.state_dict())
    for batch in BATCHES[2:]:
        assert step(again, batch)["loss"] == step(whole, batch)["loss"]
        assert again.margin == whole.margin


def test_the_margin_changes_linearly_and_stays():
    method, margins = build(mining_margin=0.2, final_margin=0.0, margin_steps=4), []
    for _ in range(6):
        method.before_step()
        margins.append(method.margin)
    assert margins == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0, 0.0])


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_the_queue_wraps_at_any_size(size):
    queue, history = FeatureQueue(size, {"a": ((2,), torch.float32), "b": ((), torch.int64)}), []
    assert len(queue.rows()["a"]) == 0
    for start in (0, 3, 4, 9, 20, 22):
        numbers = torch.arange(start, start + 3 + start % 5)
        queue.push({"a": numbers[:, None] * torch.ones(2), "b": numbers})
        history += numbers.tolist()
        rows = queue.rows()
        assert sorted(rows["b"].tolist()) == sorted(history[-size:])
        assert torch.equal(rows["a"][:, 0].long(), rows["b"])


@pytest.mark.parametrize("frames", [1, FRAMES - 1])
def test_other_numbers_of_frames_than_the_queue_has_room_for_are_refused(frames):
    method, batch = build(queue=6, partial_order=[]), BATCHES[0]
    batch = replace(batch, frames=batch.frames[:, :frames], frame_mask=batch.frame_mask[:, :frames])
    message = rf"queue, frames: expected shape \(4, {FRAMES}, \d+\), got \(4, {frames}, \d+\)"
    with pytest.raises(ValueError, match=message):
        step(method, batch)
    assert method.queue.pushed == 0


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="queue size: expected at least 1, got -2"):
        build(queue=-2)
    with pytest.raises(ValueError, match=r"method\.margin_steps: expected at least 1, got 0"):
        build(margin_steps=0)
