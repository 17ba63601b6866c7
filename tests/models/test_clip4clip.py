"""CLIP4Clip against plain loops, and what padding and order must not change."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.backbone import create_backbone
from tvrkit.models.clip4clip import CLIP4Clip, CLIP4ClipSettings
from tvrkit.settings import BackboneConfig

CAPTIONS = [
    "a red circle",
    "a small blue square on the left",
    "一个绿色的星形",
    "a ring at the top",
]
HEADS = ["meanP", "seqTransf"]


def build(head: str) -> CLIP4Clip:
    torch.manual_seed(0)
    return CLIP4Clip(
        create_backbone(BackboneConfig("tvrkit-tiny", None)), CLIP4ClipSettings(head=head, layers=2)
    ).eval()


@pytest.fixture(scope="module")
def methods() -> dict[str, CLIP4Clip]:
    return {head: build(head) for head in HEADS}


def make_batch(method: CLIP4Clip, videos: list[int] | None = None) -> TextVideoBatch:
    generator = torch.Generator().manual_seed(1)
    tokens = method.backbone.tokenizer(CAPTIONS, context_length=16)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, 3:] = mask[2, 1:] = False
    return TextVideoBatch(
        tokens=tokens,
        token_mask=tokens > 0,
        token_weight=(tokens > 0).long(),
        frames=torch.randint(0, 256, (4, 5, 3, 64, 64), dtype=torch.uint8, generator=generator),
        frame_mask=mask,
        video_index=torch.tensor(videos or [0, 1, 2, 3]),
        caption_index=torch.arange(4),
    )


def encode(method, batch):
    return method.encode_text(batch), method.encode_video(batch)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_score_is_the_cosine_of_sentence_and_mean_of_valid_frames(methods, head):
    method = methods[head]
    batch = make_batch(method)
    similarity = method.similarity(*encode(method, batch))
    _, sentence = method.backbone.encode_text(batch.tokens, batch.token_mask)
    for video in range(4):
        valid = batch.frames[
            video : video + 1, batch.frame_mask[video]
        ]  # this video alone, without padding
        frames = method.backbone.encode_frames(valid)
        if head == "seqTransf":
            frames = method.temporal(frames)
        mean = torch.stack([frame / frame.norm() for frame in frames[0]]).mean(dim=0)
        for text in range(4):
            expected = cosine_similarity(sentence[text], mean, dim=0)
            torch.testing.assert_close(similarity[text, video], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_padded_frames_and_order_change_nothing(methods, head):
    method = methods[head]
    batch = make_batch(method)
    similarity = method.similarity(*encode(method, batch))
    loss = method.loss(*encode(method, batch), batch)["loss"]
    batch.frames[~batch.frame_mask] = 255 - batch.frames[~batch.frame_mask]
    torch.testing.assert_close(
        method.similarity(*encode(method, batch)), similarity, atol=1e-5, rtol=1e-5
    )
    order = torch.tensor([2, 0, 3, 1])
    shuffled = batch[order]
    again = method.similarity(*encode(method, shuffled))
    torch.testing.assert_close(again, similarity[order][:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        method.loss(*encode(method, shuffled), shuffled)["loss"], loss, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_loss_is_the_symmetric_cross_entropy(methods):
    method = methods["meanP"]
    batch = make_batch(method)
    features = encode(method, batch)
    logits = method.similarity(*features) * method.backbone.logit_scale.exp()
    target = torch.arange(4)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(method.loss(*features, batch)["loss"], expected)


@torch.no_grad()
def test_two_captions_of_a_video_are_no_negatives_of_each_other(methods):
    method = methods["meanP"]
    batch = make_batch(method, videos=[0, 0, 1, 2])
    batch.frames[1], batch.frame_mask[1] = batch.frames[0], batch.frame_mask[0]
    features = encode(method, batch)
    logits = method.similarity(*features) * method.backbone.logit_scale.exp()
    terms = []
    for matrix in (logits, logits.T):
        for row in range(4):
            rivals = [column for column in range(4) if column == row or not {row, column} <= {0, 1}]
            terms.append(matrix[row, rivals].logsumexp(dim=0) - matrix[row, row])
    torch.testing.assert_close(method.loss(*features, batch)["loss"], torch.stack(terms).mean())


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns_and_a_batch_of_one_works(head):
    method = build(head).train()
    batch = make_batch(method)
    method.loss(*encode(method, batch), batch)["loss"].backward()
    learnt = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    silent = [name for name, p in learnt if p.grad is None or not p.grad.any()]
    assert silent == []
    one = batch[:1]
    assert method.loss(*encode(method, one), one)["loss"].item() == pytest.approx(0)


def test_temporal_transformer_starts_from_clips_text_tower(methods):
    temporal, backbone = methods["seqTransf"].temporal, methods["seqTransf"].backbone
    assert methods["meanP"].temporal is None
    text = backbone.clip.text
    own_positions = temporal.frame_position_embeddings.weight
    torch.testing.assert_close(own_positions, text.positional_embedding)
    for own, clips in zip(temporal.resblocks, text.transformer.resblocks, strict=False):
        torch.testing.assert_close(dict(own.named_parameters()), dict(clips.named_parameters()))
        assert own.attn.in_proj_weight is not clips.attn.in_proj_weight


def test_explain_gives_each_frames_cosine_and_nothing_for_padding(methods):
    method = methods["meanP"]
    batch = make_batch(method)
    text, video = encode(method, batch)
    attention = method.explain(text, video)["frame_text"]
    assert attention.shape == (4, 5)
    assert not attention.requires_grad
    assert (attention[~batch.frame_mask] == 0).all()
    expected = cosine_similarity(text.sentence[1], video.frames[1, 2], dim=0)
    torch.testing.assert_close(attention[1, 2], expected.detach(), atol=1e-5, rtol=1e-5)


def test_unknown_head_is_refused():
    with pytest.raises(ValueError, match=r"meanP.*seqTransf"):
        CLIP4ClipSettings(head="maxP")
