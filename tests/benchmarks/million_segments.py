"""A million synthetic segments, indexed and searched:

    python -m tests.benchmarks.million_segments FOLDER [COUNT]

Segments are drawn around 20,000 scenes, a unit vector each, so that neighbours are near, as in real
corpora; features are those of eight frames of the embedded model (width 128). Prints how long it
took to write and to index, bytes on disk, milliseconds of a search (median and 99 %), recall of the
approximate stage, and peak memory.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from tvrkit.data.batch import VideoFeatures
from tvrkit.data.features import pack
from tvrkit.search import index as indexes
from tvrkit.search import query as queries
from tvrkit.search.encoder import COMMIT, Encoder, Query, global_vector
from tvrkit.search.index import Index

SCENES, CHUNK, FRAMES, ASKED = 20_000, 20_000, 8, 100


def chunk(start: int, scenes: torch.Tensor, encoder: Encoder) -> pa.Table:
    """Rows `start` and following."""
    random = torch.Generator().manual_seed(start)
    scene = scenes[torch.randint(len(scenes), (CHUNK,), generator=random)]
    noise = torch.randn(CHUNK, FRAMES, scenes.shape[1], generator=random) / scenes.shape[1] ** 0.5
    frames = normalize(scene[:, None] + noise, dim=-1)
    mask = torch.ones(CHUNK, FRAMES, dtype=torch.bool)
    features = VideoFeatures(None, frames, mask, {})
    features.video = global_vector(features)
    packed = [pack(features[row : row + 1]) for row in range(CHUNK)]
    vectors = pa.array(features.video.numpy().ravel())
    number = np.arange(start, start + CHUNK)
    known = {"file": [f"{i:024x}" for i in number], "segment": np.zeros(CHUNK, np.int32)}
    known |= {"path": [f"/{i // 1000}/{i}.mp4" for i in number], "status": ["ok"] * CHUNK}
    known |= {"start": np.zeros(CHUNK), "end": np.full(CHUNK, 10.0)}
    known |= {"duration": (number % 90).astype(np.float32)}
    columns = encoder.columns()
    known |= {
        "features": packed,
        "vector": pa.FixedSizeListArray.from_arrays(vectors, scenes.shape[1]),
    }
    empty = {f.name: pa.nulls(CHUNK, f.type) for f in columns if f.name not in known}
    return pa.table({**known, **empty}).select(columns.names).cast(columns)


def near(table, query: Query, probes: int | None, count: int) -> tuple[list[str], float]:
    """The nearest by the approximate stage alone, or (`probes` None) by every vector; and how many
    milliseconds it took."""
    search = table.search(query.vector).distance_type("cosine").limit(count)
    search = search.nprobes(probes) if probes else search.bypass_vector_index()
    began = time.perf_counter()
    found = search.select(["file", "_distance"]).to_arrow()["file"].to_pylist()
    return found, 1000 * (time.perf_counter() - began)


def main(folder: str, count: int = 1_000_000) -> None:
    """Build, search, print."""
    torch.set_num_threads(2)
    encoder = Encoder(None, "tvrkit-tiny", "tvrkit")
    scenes = normalize(torch.randn(SCENES, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    Path(folder).mkdir()
    indexes.opened(folder, encoder.columns())
    index, began = Index.open(folder, encoder), time.perf_counter()
    made = 0.0
    for start in range(0, count, CHUNK):
        before = time.perf_counter()
        table = chunk(start, scenes, encoder)
        made += time.perf_counter() - before
        index.table.add(table)
    written = time.perf_counter() - began - made
    print(f"rows made in {made:.0f} s, written in {written:.0f} s", flush=True)
    began = time.perf_counter()
    index.settle()
    print(f"packed and indexed in {time.perf_counter() - began:.0f} s", flush=True)
    times = []
    for row in range(0, 50 * COMMIT, COMMIT):
        began = time.perf_counter()
        index.table.add(table.slice(row, COMMIT))
        times.append(1000 * (time.perf_counter() - began))
    print(f"{COMMIT} rows more, as a build adds them: median {np.median(times):.0f} ms", flush=True)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"{size / 1e9:.2f} GB on disk, {size / count:.0f} bytes a row", flush=True)
    index.note(unrelated=index.unrelated_scores())
    random = torch.Generator().manual_seed(-1 % 2**31)
    spread = torch.randn(ASKED, 128, generator=random) / 128**0.5
    vectors = normalize(scenes[:ASKED] + spread, dim=-1)
    asked = [
        Query(
            str(i),
            v.numpy(),
            lambda videos, v=v: (normalize(videos.frames, dim=-1) @ v).topk(2).values.mean(1),
        )
        for i, v in enumerate(vectors)
    ]
    for shortlist in (50, queries.SHORTLIST):
        index.search(asked[0], shortlist=shortlist)
        times = []
        for query in asked:
            began = time.perf_counter()
            index.search(query, shortlist=shortlist)
            times.append(1000 * (time.perf_counter() - began))
        print(
            f"search, k 10, short list {shortlist}: median {np.median(times):.0f} ms, "
            f"99 % {np.percentile(times, 99):.0f} ms",
            flush=True,
        )
    exact = [near(index.table, query, None, 10)[0] for query in asked]
    for probes in (20, 50, queries.PROBES, 150):
        for length in (10, queries.SHORTLIST):
            found = [near(index.table, query, probes, length) for query in asked]
            kept = np.mean([len({*a} & {*b}) for a, (b, _) in zip(exact, found, strict=True)])
            middle, most = np.percentile([time for _, time in found], [50, 99])
            what = f"{probes} partitions, first {length}: {10 * kept:.1f} % of the ten nearest"
            print(f"{what}, median {middle:.0f} ms, 99 % {most:.0f} ms", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
