"""A trained method, or a bare backbone, that turns rows of files into rows of an index, and queries
into scores.

An engine takes rows of files and gives tables of whole files' rows, in any order; the index alone
writes.
"""

import json
import os
import pickle  # between this process and its own workers
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from tvrkit.data.batch import TextVideoBatch, VideoFeatures, pieces
from tvrkit.data.decoders import DecodePool, FrameSettings
from tvrkit.data.features import pack, padded
from tvrkit.data.pictures import frames_of
from tvrkit.data.prepare import SHORT_SIDE
from tvrkit.data.text import Span, token_spans
from tvrkit.models.checkpoints import digest
from tvrkit.models.similarity import token_interaction
from tvrkit.models.temporal import mean_frame
from tvrkit.recipes import load_recipe
from tvrkit.search.clips import Reader, Row, read
from tvrkit.settings import BackboneConfig, choose
from tvrkit.training import runs
from tvrkit.training.card import resolve_device
from tvrkit.training.score import encode_texts

FORMAT = 3  # of an index
LONGEST = 1000  # characters of a query
BATCH = 32  # segments encoded at a time
COMMIT = 16  # files of a table
# Names of `prompts`: the scores of a query are means over its templates.
PROMPTS = {
    "none": ("{}",),
    "video": ("{}", "a video of {}", "a clip that shows {}", "footage of {}"),
    "zh": ("{}", "一段{}的视频", "视频里{}"),
}
# columns: of a file and a segment of it, and of what is seen there
FACTS = {
    **{"path": pa.string(), "start": pa.float32(), "end": pa.float32(), "duration": pa.float32()},
    **{"size": pa.int64(), "date": pa.timestamp("ns", "UTC"), "fps": pa.float32()},
    **{"width": pa.int32(), "height": pa.int32(), "status": pa.string(), "reason": pa.string()},
    **{"sha256": pa.string(), "file": pa.string(), "segment": pa.int32(), "name": pa.binary()},
}
SEEN = {"strip": pa.binary(), "features": pa.binary()}
Files = Sequence[Row]
Tables = Iterator[pa.Table]


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        label: the text, or the name of the file.
        vector: (D,) float, unit length: what the first stage compares with `global_vector`.
        score: (N,) exact scores of N videos.
        text: of a query in words its `TextFeatures`, else None.
        tokens: of a query in words where they stand in it, see `tvrkit.data.text.token_spans`.
        language: "en" or "zh" of a query in words, else "".
        notes: what the searcher should know, such as that the text was cut.
    """

    label: str
    vector: np.ndarray
    score: Callable[[VideoFeatures], Tensor]
    text: Any = None
    tokens: list[tuple[int, Span]] = field(default_factory=list)
    language: str = ""
    notes: list[str] = field(default_factory=list)


def global_vector(video: VideoFeatures) -> Tensor:
    """(N, D) unit vectors: the method's own vector of a video, else the mean of its unit frames."""
    whole = video.video if video.video is not None else mean_frame(video.frames, video.mask)
    return normalize(whole, dim=-1)


class Encoder:
    """A method with its preprocessing.

    Args:
        run: "RUN/RECIPE/seedK" of a finished run; None: the mean of the backbone's frames
            (CLIP4Clip's meanP, which has no weights of its own).
        backbone: open_clip name, where there is no run.
        pretrained: its weights, see `BackboneConfig`; None = random ones, always the same.
        device: "cpu", "cuda" or "cuda:k".

    Raises:
        ValueError: neither run nor backbone is named, or both are.
        FileNotFoundError: no such run, or no such weights.
    """

    def __init__(
        self,
        run: str | None = None,
        backbone: str | None = None,
        pretrained: str | None = None,
        device: str = "cpu",
    ):
        self.model, self.device = (run, backbone, pretrained), resolve_device(device)
        if run is not None and backbone is pretrained is None:
            done = runs.opened(run)
            self.config, method = done.config, done.method()
        elif run is None and backbone is not None:
            own = load_recipe("clip4clip_msrvtt", ["method.head=meanP"])
            self.config = replace(own, backbone=BackboneConfig(backbone, pretrained))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                method = runs.build_method(self.config).eval()
        else:
            raise ValueError("expected a run (RUN/RECIPE/seedK) or a backbone, and not both")
        self.method, self.frames = method.to(self.device), self.config.data.max_frames
        self.max_words = self.config.data.max_words if run else method.backbone.context_length

    @cached_property
    def card(self) -> dict[str, str]:
        """What an index must agree on with whoever adds to it or searches it."""
        backbone, weights = self.method.backbone, digest(self.method.state_dict())
        made = {"format": FORMAT, "method": self.config.method_name, "backbone": backbone.name}
        made |= {"weights": weights, "tokenizer": backbone.tokenizer_id}
        made |= {"frames": self.frames, "preprocessing": backbone.preprocessing}
        return {key: str(value) for key, value in made.items()}

    @torch.inference_mode()
    def videos(self, segments: Sequence[Iterable[np.ndarray]]) -> VideoFeatures:
        """Features, on the CPU, of segments that are given as their frames (H, W, 3) uint8."""
        fit, parts = self.method.backbone.preprocessing.fit, []
        for some in pieces(segments, BATCH):
            pictures = [torch.from_numpy(np.stack([*frames])) for frames in some]
            frames, mask = padded([fit(each.permute(0, 3, 1, 2)) for each in pictures], self.frames)
            batch = TextVideoBatch(frames=frames, frame_mask=mask).to(self.device)
            parts.append(self.method.encode_video(batch).to("cpu"))
        return VideoFeatures.cat(parts)

    def columns(self) -> pa.Schema:
        """Those of an index: `FACTS`, `SEEN`, and the global vector, beside which stands the card.

        `features` is a safetensors file of what the method scores by, in half precision.
        """
        kind = pa.list_(pa.float32(), self.method.backbone.width)
        about = {"card": json.dumps({"model": self.model, "made": self.card})}
        return pa.schema([*(FACTS | SEEN).items(), pa.field("vector", kind, metadata=about)])

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Rows of files that were read, with vectors and features where they have pictures."""
        seen = [row for row in rows if "pictures" in row]
        if seen:
            features = self.videos([map(simplejpeg.decode_jpeg, row["pictures"]) for row in seen])
            vectors = global_vector(features).numpy()
            if not np.isfinite(vectors).all():
                raise ValueError(f"the model gives NaN for one of {seen[0]['path']!r} ...")
            for i, row in enumerate(seen):
                row |= {"vector": vectors[i], "features": pack(features[i : i + 1])}
        return pa.Table.from_pylist(rows, self.columns())

    @torch.inference_mode()
    def text_query(self, text: str, prompts: str = "none") -> Query:
        """A query in words.

        Args:
            prompts: a key of `PROMPTS`.

        Raises:
            ValueError: an empty or overlong text, or unknown prompts.
        """
        templates = PROMPTS[choose("prompts", prompts, PROMPTS)]
        tokenizer, notes = self.method.backbone.tokenizer, []
        if not 0 < (length := len(text.strip())) <= LONGEST:
            expected = f"expected words of 1 to {LONGEST:,} characters"
            raise ValueError(f"query: {expected}, got {length:,}")
        spans = token_spans([text], tokenizer, LONGEST)[0]
        if len(spans) > len({place for _, span in spans for place in range(*span)}):
            notes.append("the model does not know this script: it spells the query in bytes")
        if len(spans) > self.max_words - 2:
            notes.append(f"the model reads {self.max_words - 2} tokens of the query's {len(spans)}")
        language = "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"
        texts = [template.format(text) for template in templates]
        features = encode_texts(self.method, texts, self.max_words, language)
        vector = normalize(normalize(features.sentence, dim=-1).mean(dim=0), dim=-1).cpu().numpy()

        @torch.inference_mode()
        def score(videos: VideoFeatures) -> Tensor:
            similarity = self.method.similarity(features, videos.to(self.device))
            return similarity.float().mean(dim=0).cpu()

        return Query(text, vector, score, features[:1], spans, language, notes)

    @torch.inference_mode()
    def file_query(self, path: Path) -> Query:
        """A video, all of it, or a picture: the nearest frames of both sides decide (DMAE's
        token-wise interaction between the two sets of frames).

        Raises:
            DecodeError: it is neither, or gives no frame.
        """
        own = self.videos([frames_of(path, FrameSettings(self.frames, SHORT_SIDE))])
        look, whole = normalize(own.frames, dim=-1), own.mask

        def score(videos: VideoFeatures) -> Tensor:
            theirs = normalize(videos.frames, dim=-1)
            return token_interaction(look, theirs, whole, videos.mask, mask_fill="exclude")[0]

        return Query(path.name, global_vector(own)[0].numpy(), score)

    def __call__(self, batch: dict) -> dict:
        """`table` for Ray: pickled rows in, a pickled table out."""
        rows = [*chain.from_iterable(map(pickle.loads, batch["rows"]))]
        return {"table": [pickle.dumps(self.table(rows))]}


def local(files: Files, encoder: Encoder, seconds: float, workers: int, bar: tqdm) -> Tables:
    """In this process: workers decode the next files while these are encoded."""
    ahead: Iterator[list[Row]] = iter(())
    with ThreadPoolExecutor(workers) as threads, DecodePool(workers) as pool:
        for batch in [*pieces(files, COMMIT), []]:
            ready = ahead
            ahead = threads.map(lambda file: read(pool, file, encoder.frames, seconds), batch)
            rows: list[Row] = []
            for made in ready:
                rows += made
                bar.update()
            if rows:
                yield encoder.table(rows)


def on_ray(files: Files, encoder: Encoder, seconds: float, workers: int, bar: tqdm) -> Tables:
    """The same by Ray Data, on this machine or the cluster that `RAY_ADDRESS` names, which sees the
    files under the same paths.

    A worker that is lost is replaced and its batch done again. Only this process writes, and only
    whole tables: no row is lost or there twice.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data: Any = ray.data.from_items([{"row": pickle.dumps(row)} for row in files])
    # half a core each: on one machine decoders and encoders take turns
    pool: dict[str, Any] = {"concurrency": workers, "num_cpus": 0.5}
    data = data.map(Reader, fn_constructor_args=(encoder.frames, seconds), **pool)
    pool |= {"batch_size": COMMIT, "num_gpus": int(encoder.device.type == "cuda")}
    model = (*encoder.model, str(encoder.device))
    data = data.map_batches(Encoder, fn_constructor_args=model, **pool)
    for row in data.iter_rows() if files else ():
        table = pickle.loads(row["table"])
        bar.update(table["segment"].to_pylist().count(0))
        yield table


ENGINES = {"local": local, "ray": on_ray}
