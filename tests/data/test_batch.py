"""Batches are moved, indexed, joined and pinned field by field."""

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from tvrkit.data.batch import TextVideoBatch, VideoFeatures, positives


def batch(rows):
    tokens = torch.arange(2 * rows).view(rows, 2)
    return TextVideoBatch(
        tokens=tokens, video_index=torch.arange(rows), extras={"tags": tokens + 1}
    )


def test_rows_of_every_field_and_back():
    whole = batch(5)
    assert len(whole) == 5
    parts = [whole[:2], whole[torch.tensor([2, 3, 4])]]
    joined = TextVideoBatch.cat(parts)
    assert torch.equal(joined.tokens, whole.tokens)
    assert torch.equal(joined.extras["tags"], whole.extras["tags"])
    assert joined.frames is None


def test_a_loader_finds_how_to_pin_a_batch(monkeypatch):
    """torch's loader pins what has a `pin_memory` method; without a GPU the tensors' own raises."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 100)
    pinned = pin_memory(batch(2))
    assert isinstance(pinned, TextVideoBatch)
    assert pinned.tokens.tolist() == [[100, 101], [102, 103]]
    assert pinned.extras["tags"].tolist() == [[101, 102], [103, 104]]
    assert pinned.frames is None


def test_features_are_cut_from_their_gradient():
    frames = torch.ones(2, 3, 4, requires_grad=True)
    features = VideoFeatures(None, frames, torch.ones(2, 3, dtype=torch.bool)).detach()
    assert not features.frames.requires_grad


def test_captions_of_one_video_are_positives_of_each_other():
    expected = [[True, False, True], [False, True, False], [True, False, True]]
    assert positives(torch.tensor([4, 1, 4])).tolist() == expected
