"""GLSCL: what was corrected, by its properties. Released numbers are in the parity table."""

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.backbone import create_backbone
from tvrkit.models.glscl import GLSCL, GLSCLSettings
from tvrkit.settings import BackboneConfig

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SMALL = {"decoder_layers": 2, "feedforward": 32, "temporal_layers": 1, "queries": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone(BackboneConfig("tvrkit-tiny", None))


def make(backbone, **changes):
    torch.manual_seed(1)
    return GLSCL(backbone, GLSCLSettings(**(SMALL | changes)))


def test_queries_start_nearly_parallel_or_orthogonal(backbone):
    off = ~torch.eye(4, dtype=torch.bool)
    for start, low, high in (("uniform", 0.6, 0.9), ("orthogonal", -1e-5, 1e-5)):
        unit = normalize(make(backbone, query_start=start).queries["both"].weight, dim=1)
        cosines = (unit @ unit.T)[off]
        assert low < cosines.min() <= cosines.max() < high, start


def make_batch(rows=4, words=8, frames=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, words + 1, (rows, 1), generator=random)
    token_mask = torch.arange(words) < lengths
    frame_mask = torch.arange(frames) < torch.randint(1, frames + 1, (rows, 1), generator=random)
    tokens = torch.randint(2, 1000, (rows, words), generator=random) * token_mask
    tokens.scatter_(1, lengths - 1, 1299)  # EOT, the largest id
    pixels = torch.randn(rows, frames, 3, 64, 64, generator=random)
    order = torch.arange(rows)
    return TextVideoBatch(tokens, token_mask, token_mask.long(), pixels, frame_mask, order, order)


def run(method, batch):
    text, video = method.encode_text(batch), method.encode_video(batch)
    return method.similarity(text, video), method.loss(text, video, batch)


def noisy(batch):
    """The same batch with other content, and more of it, in its padding."""

    def longer(mask, content, filler):
        content = torch.where(mask.view(*mask.shape, *[1] * (content.ndim - 2)), content, filler)
        return torch.cat([content, filler.expand_as(content)], dim=1), torch.cat(
            [mask, torch.zeros_like(mask)], dim=1
        )

    frames, frame_mask = longer(batch.frame_mask, batch.frames, torch.tensor(3.0))
    tokens, token_mask = longer(batch.token_mask, batch.tokens, torch.tensor(7))
    changes = {
        "frames": frames,
        "frame_mask": frame_mask,
        "tokens": tokens,
        "token_mask": token_mask,
    }
    return dataclasses.replace(batch, token_weight=token_mask.long(), **changes)


def test_corrected_ignores_padding_and_released_does_not(backbone):
    batch = make_batch()
    for fidelity, same in (("corrected", True), ("released", False)):
        method = make(backbone, fidelity=fidelity)
        (scores, parts), (other_scores, other_parts) = run(method, batch), run(method, noisy(batch))
        assert torch.allclose(scores, other_scores, atol=1e-5) == same
        assert torch.allclose(parts["loss"], other_parts["loss"], atol=1e-5) == same


def test_released_towers_mask_padded_words(backbone):
    """What padding holds can't reach released words, though the decoder reads the padded places."""
    batch, method = make_batch(), make(backbone, fidelity="released")
    text = method.encode_text(batch)
    words, _ = backbone.encode_text(batch.tokens, batch.token_mask)
    mask = batch.token_mask
    torch.testing.assert_close(text.words[mask], words[mask])
    assert not torch.allclose(text.words[~mask], words[~mask], atol=1e-3)


def test_permuting_the_batch_changes_nothing(backbone):
    batch, order = make_batch(), torch.tensor([2, 0, 3, 1])
    method = make(backbone)
    scores, parts = run(method, batch)
    permuted_scores, permuted = run(method, batch[order])
    torch.testing.assert_close(permuted_scores, scores[order][:, order], **CLOSE)
    for name, value in parts.items():
        torch.testing.assert_close(permuted[name], value, **CLOSE)


@pytest.mark.parametrize("fidelity", ["released", "corrected"])
@pytest.mark.parametrize("shared", [True, False])
def test_every_trainable_parameter_gets_a_gradient(backbone, fidelity, shared):
    method = make(backbone, fidelity=fidelity, shared_queries=shared, shared_decoder=shared)
    method.zero_grad()
    run(method, make_batch())[1]["loss"].backward()
    dead = [
        n
        for n, p in method.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert dead == []


@pytest.mark.parametrize("fidelity", ["released", "corrected"])
@pytest.mark.parametrize("rows", [1, 3])
def test_small_and_ragged_batches(backbone, fidelity, rows):
    method = make(backbone, fidelity=fidelity)
    scores, parts = run(method, make_batch(rows))
    assert scores.shape == (rows, rows)
    assert all(value.isfinite() for value in parts.values())


def test_sharing_is_half_the_parameters(backbone):
    shared, apart = (make(backbone, shared_queries=s, shared_decoder=s) for s in (True, False))
    counts = [
        sum(p.numel() for n, p in m.named_parameters() if n[:7] in ("queries", "decoder"))
        for m in (shared, apart)
    ]
    assert counts[1] == 2 * counts[0]


def test_captions_of_one_video_are_no_negatives(backbone):
    batch, method = make_batch(2), make(backbone)
    together = dataclasses.replace(batch, video_index=torch.tensor([4, 4]))
    assert run(method, batch)[1]["info_nce"] > 0
    assert run(method, together)[1]["info_nce"] == 0


def test_dropout_acts_in_training_only(backbone):
    method, batch = make(backbone, dropout=0.5), make_batch()
    train = [method.encode_text(batch).extras["concepts"] for _ in range(2)]
    method.eval()
    test = [method.encode_text(batch).extras["concepts"] for _ in range(2)]
    assert not torch.equal(*train)
    assert torch.equal(*test)


def test_explain_returns_distributions(backbone):
    batch, method = make_batch(), make(backbone).eval()
    text, video = method.encode_text(batch), method.encode_video(batch)
    maps = method.explain(text, video)
    for name, mask in (("concept_words", batch.token_mask), ("concept_frames", batch.frame_mask)):
        torch.testing.assert_close(maps[name].sum(-1), torch.ones(4, 4))
        assert maps[name].masked_select(~mask[:, None]).eq(0).all()
    pooled = (maps["frame_weight"][..., None] * video.frames).sum(1)
    glob = torch.cosine_similarity(text.sentence, pooled, dim=-1)
    score = glob + 0.5 * maps["concept_score"].mean(1)
    torch.testing.assert_close(method.similarity(text, video).diagonal(), score, **CLOSE)
