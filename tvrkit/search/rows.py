"""From files to the rows of an index, a row for each segment.

An engine takes files and gives tables of whole files' rows, in any order; the index alone writes.
"""

import hashlib
import os
import pickle  # between this process and its own workers
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from safetensors.torch import load, save

from tvrkit.data.batch import VideoFeatures
from tvrkit.data.decoders import DecodePool
from tvrkit.search.clips import Clip, File, Reader, read
from tvrkit.search.encoder import Encoder, global_vector

COMMIT = 16  # files of a table
STRIP = 64  # pixels: height of the film strip
FACTS = {
    **{"file": pa.string(), "segment": pa.int32(), "path": pa.string(), "name": pa.binary()},
    **{"start": pa.float32(), "end": pa.float32(), "duration": pa.float32(), "size": pa.int64()},
    **{"modified": pa.int64(), "date": pa.timestamp("s", "UTC"), "sha256": pa.string()},
    **{"status": pa.string(), "reason": pa.string(), "fps": pa.float32(), "width": pa.int32()},
    **{"height": pa.int32(), "strip": pa.binary(), "features": pa.binary()},
}


def schema(width: int) -> pa.Schema:
    """The columns of an index with vectors of this width.

    `file` stands for the path, `name` has its bytes, `path` its text; `strip` is a JPEG file;
    `features` is a safetensors file of what the method scores by, in half precision.
    """
    return pa.schema({**FACTS, "vector": pa.list_(pa.float32(), width)})


def to_table(encoder: Encoder, clips: Sequence[Clip]) -> pa.Table:
    """Rows of files that were read; a file without a segment has one row, its reason."""
    rows, failed = [], [_facts(clip) for clip in clips if not clip.segments]
    shown = [(clip, *numbered) for clip in clips for numbered in enumerate(clip.segments)]
    if shown:
        features = encoder.videos([segment.frames for *_, segment in shown])
        vectors = global_vector(features).numpy()
        if not np.isfinite(vectors).all():
            first = clips[0].file.path
            raise ValueError(f"the model gives no number for a video among {first!r} ...")
        for i, (clip, number, segment) in enumerate(shown):
            place = {"segment": number, "start": segment.start, "end": segment.end}
            seen = {"vector": vectors[i], "features": pack(features[i : i + 1])}
            rows.append(_facts(clip) | place | seen | {"strip": strip(segment.frames)})
    return pa.Table.from_pylist(rows + failed, schema(encoder.method.backbone.width))


def _facts(clip: Clip) -> dict:
    info, status = clip.info, "ok" if clip.segments else "failed"
    known = {key: getattr(info, key) for key in ("reason", "duration", "fps", "width", "height")}
    return {**identity(clip.file), "sha256": clip.sha256, "status": status, "segment": 0, **known}


def identity(file: File) -> dict:
    """What a row says of where its file is. `file` is letters and digits, whatever the name
    holds; in `path` bytes that are no UTF-8 are `\\xff`."""
    name = os.fsencode(file.path)
    return {
        "file": hashlib.sha256(name).hexdigest()[:24],
        "path": name.decode(errors="backslashreplace"),
        "name": name,
        "size": file.size,
        "modified": file.modified,
        "date": datetime.fromtimestamp(file.modified // 10**9, UTC),
    }


def strip(frames: Sequence[bytes]) -> bytes:
    """The frames side by side, small, as one JPEG file."""
    images = [simplejpeg.decode_jpeg(file, min_height=STRIP) for file in frames]
    return simplejpeg.encode_jpeg(np.concatenate(images, axis=1), quality=75)


def pack(features: VideoFeatures) -> bytes:
    """A safetensors file; half precision halves the index."""
    named = {"frames": features.frames, "mask": features.mask, **features.extras}
    named |= {} if features.video is None else {"video": features.video}
    halved = {key: t.half() if t.is_floating_point() else t for key, t in named.items()}
    return save({key: tensor.contiguous() for key, tensor in halved.items()})


def unpack(files: Sequence[bytes]) -> VideoFeatures:
    """The features of several rows, as the encoder made them but for half precision."""
    rows = [load(file) for file in files]
    named = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    whole = {key: t.float() if t.is_floating_point() else t for key, t in named.items()}
    video, frames, mask = whole.pop("video", None), whole.pop("frames"), whole.pop("mask")
    return VideoFeatures(video, frames, mask, whole)


def local(
    files: Sequence[File], encoder: Encoder, seconds: float, workers: int
) -> Iterator[pa.Table]:
    """In this process: workers decode the next files while these are encoded."""
    ahead: Iterator[Clip] = iter(())
    with DecodePool(workers) as pool, ThreadPoolExecutor(workers) as threads:
        try:
            for start in range(0, len(files) + COMMIT, COMMIT):
                ready, batch = ahead, files[start : start + COMMIT]
                ahead = threads.map(lambda file: read(pool, file, encoder.frames, seconds), batch)
                if clips := list(ready):
                    yield to_table(encoder, clips)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


class _Encode:
    """A worker of Ray that encodes, on a GPU where its encoder is."""

    def __init__(self, *model: Any):
        self.encoder = Encoder(*model)

    def __call__(self, batch: dict) -> dict:
        clips = [*map(pickle.loads, batch["clip"])]
        return {"table": [pickle.dumps(to_table(self.encoder, clips))]}


def on_ray(
    files: Sequence[File], encoder: Encoder, seconds: float, workers: int
) -> Iterator[pa.Table]:
    """The same by Ray Data, on this machine or the cluster that `RAY_ADDRESS` names, which sees the
    files under the same paths.

    A worker that is lost is replaced and its batch done again. Only this process writes, and only
    whole tables: no row is lost or there twice.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # half a core each: on one machine decoders and encoders take turns
    pool: dict[str, Any] = {"concurrency": workers, "num_cpus": 0.5}
    gpus = {"num_gpus": 1} if encoder.device.type == "cuda" else {}
    data: Any = ray.data.from_items([{"file": pickle.dumps(file)} for file in files])
    data = data.map(Reader, fn_constructor_args=(encoder.frames, seconds), **pool)
    model = (*encoder.model, str(encoder.device))
    options = {"fn_constructor_args": model, "batch_size": COMMIT, **pool, **gpus}
    data = data.map_batches(_Encode, **options)
    for row in data.iter_rows() if files else ():
        yield pickle.loads(row["table"])


ENGINES = {"local": local, "ray": on_ray}
