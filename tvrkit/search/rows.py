"""A row of an index is a segment: what is known of it, and the features the method scores by."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from torch import Tensor

from tvrkit.data.batch import VideoFeatures
from tvrkit.search.clips import Clip, File
from tvrkit.search.encoder import Encoder, global_vector

# How the tensors of `VideoFeatures` are kept: half precision halves the index.
STORED = {"float32": pa.float16(), "bool": pa.uint8(), "int64": pa.int32()}
FACTS = {
    **{"file": pa.string(), "segment": pa.int32(), "path": pa.string()},
    **{"name": pa.binary(), "start": pa.float32(), "end": pa.float32()},
    **{"duration": pa.float32(), "size": pa.int64(), "modified": pa.int64()},
    **{"date": pa.timestamp("s", "UTC"), "sha256": pa.string(), "status": pa.string()},
    **{"reason": pa.string(), "fps": pa.float32(), "width": pa.int32(), "height": pa.int32()},
    "strip": pa.binary(),
}
STRIP = 64  # pixels: height of the film strip
Shapes = dict[str, tuple[list[int], str]]  # of each tensor, for one video, and its dtype


def tensors(features: VideoFeatures) -> dict[str, Tensor]:
    """The tensors of features by the name of their column."""
    extras = {f"extra_{name}": tensor for name, tensor in features.extras.items()}
    whole = {} if features.video is None else {"video": features.video}
    return {"frames": features.frames, "mask": features.mask, **whole, **extras}


def shapes(encoder: Encoder) -> Shapes:
    """What the encoder makes of a video."""
    size = encoder.method.backbone.image_size
    black = simplejpeg.encode_jpeg(np.zeros((size, size, 3), np.uint8))
    made = tensors(encoder.videos([[black] * encoder.frames]))
    return {
        key: (list(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for key, t in made.items()
    }


def schema(kinds: Shapes, width: int) -> pa.Schema:
    """Columns of an index whose features have these shapes and whose vectors have this width."""
    columns = {
        key: pa.list_(STORED[dtype], math.prod(shape)) for key, (shape, dtype) in kinds.items()
    }
    return pa.schema({**FACTS, "vector": pa.list_(pa.float32(), width), **columns})


def to_features(table: pa.Table, kinds: Shapes) -> VideoFeatures:
    """The features of rows, as the encoder made them but for half precision."""
    found: dict[str, Any] = {
        key: torch.from_numpy(_numbers(table[key]).reshape(-1, *shape)).to(getattr(torch, dtype))
        for key, (shape, dtype) in kinds.items()
    }
    extras = {key.removeprefix("extra_"): found[key] for key in found if key.startswith("extra_")}
    return VideoFeatures(found.get("video"), found["frames"], found["mask"], extras)


def to_vectors(table: pa.Table) -> np.ndarray:
    """(N, D) float32, the column `vector`."""
    return _numbers(table["vector"]).reshape(len(table), table["vector"].type.list_size)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    whole = column.combine_chunks()
    return whole.flatten().to_numpy(zero_copy_only=False).copy()


def to_table(encoder: Encoder, clips: Sequence[Clip], columns: pa.Schema) -> pa.Table:
    """Rows of files that were read; a file without a segment has one row, its reason."""
    rows = [row for clip in clips for row in _facts(clip)]
    facts = pa.Table.from_pylist(rows, schema=pa.schema(FACTS))
    pictures = [segment.frames for clip in clips for segment in clip.segments]
    if not pictures:
        return pa.Table.from_pylist(rows, schema=columns)
    features = encoder.videos(pictures)
    values = {"vector": global_vector(features), **tensors(features)}
    # the row of the features that a row of the table takes; none where a file failed
    count = iter(range(len(pictures)))
    takes = pa.array([next(count) if row["status"] == "ok" else None for row in rows], pa.int64())
    for column in list(columns)[len(FACTS) :]:
        flat = values[column.name].reshape(len(pictures), -1).numpy()
        stored = pa.array(flat.astype(column.type.value_type.to_pandas_dtype()).ravel())
        array = pa.FixedSizeListArray.from_arrays(stored, flat.shape[1])
        facts = facts.append_column(column, array.take(takes))
    return facts


def identity(file: File) -> dict:
    """What a row says of where its file is."""
    return {
        "file": file.key,
        "path": file.shown,
        "name": os.fsencode(file.path),
        "size": file.size,
        "modified": file.modified,
        "date": datetime.fromtimestamp(file.modified // 10**9, UTC),
    }


def _facts(clip: Clip) -> list[dict]:
    info = clip.info
    known = {
        **identity(clip.file),
        "sha256": clip.sha256,
        "status": "ok" if clip.segments else "failed",
        "reason": info.reason,
        "duration": info.duration,
        **{key: getattr(info, key) for key in ("fps", "width", "height")},
    }
    if not clip.segments:
        return [known | {"segment": 0}]
    return [
        known | {"segment": i, "start": s.start, "end": s.end, "strip": strip(s.frames)}
        for i, s in enumerate(clip.segments)
    ]


def strip(frames: Sequence[bytes]) -> bytes:
    """The frames side by side, small, as one JPEG file."""
    images = [simplejpeg.decode_jpeg(file, min_height=STRIP) for file in frames]
    return simplejpeg.encode_jpeg(np.concatenate(images, axis=1), quality=75)
