"""Features keep what they are in an index, but for half precision."""

import pyarrow as pa
import pytest
import torch

from tests.fakes import TwoLayers
from tvrkit.data.batch import VideoFeatures
from tvrkit.data.decoders import VideoInfo
from tvrkit.search import rows
from tvrkit.search.clips import Clip, File, Segment, read_clip


@pytest.fixture
def clips(corpus):
    frames = read_clip(sorted(corpus.iterdir())[0], 8)
    info = VideoInfo(8, 8.0, 2.0, 64, 64, "pyav", "")
    segments = [Segment(0.0, 1.0, frames), Segment(1.0, 2.0, frames[:3])]
    broken = Clip(File("/b.mp4", 3, 5), "", VideoInfo(reason="no frames"))
    return [Clip(File("/a.mp4", 10, 1_700_000_000 * 10**9), "f" * 64, info, segments), broken]


def test_a_row_per_segment_and_one_for_a_failure(encoder, clips):
    kinds = rows.shapes(encoder)
    table = rows.to_table(encoder, clips, rows.schema(kinds, encoder.method.backbone.width))
    facts = table.select(["path", "segment", "start", "end", "status", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in facts] == [
        ("/a.mp4", 0, 0.0, 1.0, "ok", ""),
        ("/a.mp4", 1, 1.0, 2.0, "ok", ""),
        ("/b.mp4", 0, None, None, "failed", "no frames"),
    ]
    assert table["vector"].null_count == table["frames"].null_count == 1
    alone = rows.to_table(encoder, clips[1:], table.schema)
    assert alone.equals(table.slice(2))


def test_features_come_back(encoder, clips):
    kinds = rows.shapes(encoder)
    table = rows.to_table(encoder, clips, rows.schema(kinds, encoder.method.backbone.width))
    made = encoder.videos([segment.frames for segment in clips[0].segments])
    back = rows.to_features(table.slice(0, 2), kinds)
    assert torch.equal(back.mask, made.mask)
    torch.testing.assert_close(back.frames, made.frames, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back.video, made.video, rtol=1e-3, atol=1e-3)


def test_every_kind_of_tensor_comes_back():
    extras = {"near": torch.tensor([[2, 1], [0, 1]]), "gain": torch.rand(2, 2)}
    made = VideoFeatures(None, torch.rand(2, 2, 4), torch.tensor([[True, False]] * 2), extras)
    kinds = {k: (list(t.shape[1:]), str(t.dtype)[6:]) for k, t in rows.tensors(made).items()}
    columns = rows.schema(kinds, TwoLayers().width)
    arrays = {
        key: pa.FixedSizeListArray.from_arrays(
            pa.array(t.flatten().numpy()).cast(columns.field(key).type.value_type), t[0].numel()
        )
        for key, t in rows.tensors(made).items()
    }
    back = rows.to_features(pa.table(arrays), kinds)
    assert back.video is None
    assert back.extras["near"].dtype == torch.int64
    assert torch.equal(back.extras["near"], extras["near"])
    torch.testing.assert_close(back.extras["gain"], extras["gain"], rtol=1e-3, atol=1e-3)
