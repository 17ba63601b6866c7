"""Batches are moved, indexed, joined and pinned field by field."""

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from tvrkit.data.batch import TextVideoBatch, inner_words, pieces, positives, uniform


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


def test_the_ends_of_a_text_are_no_inner_words():
    mask = torch.arange(5) < torch.tensor([[5], [3], [2]])
    expected = [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert inner_words(mask).int().tolist() == expected
    assert mask[:, 0].all()


def test_captions_of_one_video_are_positives_of_each_other():
    expected = [[True, False, True], [False, True, False], [True, False, True]]
    assert positives(torch.tensor([4, 1, 4])).tolist() == expected


def test_uniform_numbers_are_uniform_and_depend_on_their_seed_alone():
    seeds = torch.arange(-2000, 2000)
    draws = uniform(seeds, 3, 8)
    assert (draws.shape, draws.dtype) == ((4000, 3, 8), torch.float32)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.histc(10, 0, 1) / draws.numel() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(uniform(seeds[[7, 3]], 3, 8), draws[[7, 3]])
    flat = draws.flatten(1).double()
    assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.08  # of positions
    neighbours = torch.stack([flat[:-1].flatten(), flat[1:].flatten()])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.02  # of rows whose seeds follow each other
    # the first output of SplitMix64 from seed 1234567, one step on: 6457827717110365317
    start = torch.tensor([1234567 - 0x61C8864680B583EB])
    assert uniform(start, 1).item() == pytest.approx(6457827717110365317 / 2**64, abs=1e-7)


def test_pieces_are_slices_of_lists_and_of_batches():
    assert pieces([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert pieces([], 2) == []
    assert [len(part) for part in pieces(batch(5), 3)] == [3, 2]
