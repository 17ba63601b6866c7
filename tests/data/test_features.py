"""Shards give back, row by row, what was written; what is missing or damaged is said."""

import json

import pytest
import torch

from tests.fakes import split
from tvrkit.data import features
from tvrkit.data.batch import VideoFeatures
from tvrkit.data.features import Features, content, pack, padded, unpack, write_shards


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Seven items of one to four rows in shards of three, and the card."""
    monkeypatch.setattr(features, "SHARD", 3)
    items = [torch.full((1 + row % 4, 5), float(row)) for row in range(7)]
    for kind in ("videos", "texts"):
        write_shards(tmp_path, f"test-{kind}", iter(items))
    (tmp_path / "card.json").write_text(json.dumps({"splits": {"test": "x"}}))
    return tmp_path, items


def test_every_row_comes_back_from_its_shard(written):
    folder, items = written
    assert len(list(folder.glob("test-videos-*.safetensors"))) == 3
    found = Features(folder, "test")
    for row in (0, 2, 3, 6):
        assert torch.equal(found.item("videos", row), items[row])
    texts = found.texts([1, 6], length=4)
    assert texts.shape == (2, 5, 5)
    assert torch.equal(texts[0, :2], items[1])
    assert (texts[0, 2:] == 0).all()


def test_padding_is_masked():
    whole, mask = padded([torch.ones(2, 3), torch.ones(1, 3)], 4)
    assert whole.shape == (2, 4, 3)
    assert mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert (whole.sum(-1) > 0).tolist() == mask.tolist()


def test_what_is_half_written_of_another_split_or_damaged_is_said(written, tmp_path):
    folder, _ = written
    with pytest.raises(ValueError, match="expected split train, got test: make them again"):
        Features(folder, "train")
    with pytest.raises(FileNotFoundError, match="nowhere: the folder is not there: make them"):
        Features(folder / "nowhere", "test")
    found = Features(folder, "test")
    with pytest.raises(ValueError, match=r"00002\.safetensors: expected row 1"):
        found.item("videos", 7)
    shard = folder / "test-texts-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"test-texts-00000\.safetensors: expected row 0"):
        found.item("texts", 0)
    for text, message in (
        ("{}", "splits: at the top"),
        ("[]", r"card\.json: expected a JSON object"),
        ("{", "JSON"),
    ):
        (folder / "card.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Features(folder, "test")
    (folder / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match="the folder is half written"):
        Features(folder, "test")


def test_content_tells_other_videos_frames_and_captions_apart():
    import pandas as pd

    def made(caption="a", video="v", frames=6):
        columns = {"caption_id": ["c"], "video_id": [video], "caption": [caption]}
        one = split("test", pd.DataFrame(columns), [video], [0])
        return content(type(one)(**{**vars(one), "frame_counts": [frames]}))

    assert made() == made()
    assert len({made(), made(caption="b"), made(video="w"), made(frames=5)}) == 4


def test_every_kind_of_tensor_comes_back():
    extras = {"near": torch.tensor([[2, 1], [0, 1]]), "gain": torch.rand(2, 2)}
    made = VideoFeatures(None, torch.rand(2, 2, 4), torch.tensor([[True, False]] * 2), extras)
    back = unpack([pack(made[:1]), pack(made[1:])])
    assert back.video is None
    assert (back.mask.dtype, back.frames.dtype) == (torch.bool, torch.float32)
    assert torch.equal(back.extras["near"], extras["near"])
    torch.testing.assert_close(back.extras["gain"], extras["gain"], rtol=1e-3, atol=1e-3)
