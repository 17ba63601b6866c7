"""One evaluation for every method: similarity once, ranks both ways, intervals.

The matrix lies in a file, and is written and read some rows at a time: 50,000 captions and videos
take no more memory than their features do.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from tvrkit import files
from tvrkit.data import processes
from tvrkit.data.batch import TextVideoBatch, VideoFeatures
from tvrkit.data.loader import text_loader, video_loader
from tvrkit.data.manifest import Split
from tvrkit.evaluation import factors
from tvrkit.evaluation import ranks as ranking
from tvrkit.evaluation.postprocess import NEEDS_BANK, processed
from tvrkit.evaluation.ranks import DIRECTIONS, prefixed
from tvrkit.evaluation.statistics import bootstrap_metrics, interval
from tvrkit.models.method import Method, precision
from tvrkit.settings import Config, EvalConfig, TrainConfig
from tvrkit.shapes.truth import Truth

V2T_CONVENTION = "max over captions"  # the published one; "first hit" is reported beside it
LARGEST = 2**32  # bytes of arrays that a file may unpack to
BOUNDS = ("optimistic", "pessimistic")
AS_GIVEN = ("zero-shot", "untrained", "as given")  # selections of what was not trained here
IDS = ("caption_ids", "video_ids", "video_of_caption", "family_of_video")
FACTORS = "factors.csv.gz"
NO_FACTORS = pd.DataFrame(columns=factors.COUNTED)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A similarity matrix and all that is read off it. Row = caption, column = video.

    Attributes:
        similarity: (N_t, N_v) float32, raw scores of the method; in a file where they have just
            been made.
        caption_ids: (N_t,) str.
        video_ids: (N_v,) str.
        video_of_caption: (N_t,) int64, the column of each caption's own video.
        ranks: "t2v" (N_t,) of every caption and "v2t" (N_v,) of every video, raw, from 1.
        family_of_video: (N_v,) int64, the same for videos whose scenes are alike
            (`factors.families_of`): what intervals resample together.
        factors: `factors.swapped_counts`; empty where no truth is on record.
        metrics: what metrics.json holds, flat. Numbers: "t2v R@1" ... "v2t MnR" and "rsum"; each
            with "... low" and "... high" (95 % interval) and "... optimistic" and
            "... pessimistic" (tie rules); "first hit v2t R@1" ...; and all of them again for
            post-processed scores ("dsl t2v R@1"); where truth is on record "t2v R@1 ceiling" and of
            v2t (`factors.ceilings`). Counts: "t2v queries", "v2t queries", "videos".
            Labels: split, language, selection, ties, v2t_convention, complete, missing.
    """

    similarity: np.ndarray
    caption_ids: np.ndarray
    video_ids: np.ndarray
    video_of_caption: np.ndarray
    family_of_video: np.ndarray
    ranks: dict[str, np.ndarray]
    metrics: dict
    factors: pd.DataFrame

    @classmethod
    def from_similarity(
        cls, similarity, ids, settings, *, banks=None, truth: Truth | None = None, **labels
    ) -> Self:
        """Evaluate a similarity matrix, wherever it comes from.

        Args:
            similarity: (N_t, N_v), read some rows at a time.
            ids: (caption_ids, video_ids, video_of_caption), as the attributes.
            settings: `EvalConfig`: tie rule, bootstrap resamples, post-processing.
            banks: for "qbnorm", see `postprocess.processed`.
            truth: of shapes: videos of one family share their luck.
            labels: further entries of `metrics`.

        Raises:
            ValueError: what `retrieval_ranks` refuses, or "qbnorm" without banks.
        """
        captions, videos = np.asarray(ids[0], str), np.asarray(ids[1], str)
        owner = np.asarray(ids[2], np.int64)
        similarity = np.asarray(similarity, np.float32)
        families = factors.families_of(videos, truth)
        both, rest = dict.fromkeys(DIRECTIONS, similarity), (owner, families, settings)
        ranks, first_hit, metrics = _measure(both, *rest)
        metrics |= prefixed("first hit v2t", ranking.retrieval_metrics(first_hit))
        for name in settings.postprocess:
            both = processed(name, similarity, banks, settings)
            metrics |= prefixed(name, _measure(both, *rest)[2])
        metrics |= factors.ceilings(captions, videos, truth) if truth else {}
        counts = {f"{direction} queries": len(ranks[direction]) for direction in DIRECTIONS}
        rules = {"ties": settings.ties, "v2t_convention": V2T_CONVENTION}
        labels |= {**counts, "videos": len(videos), **rules} | metrics
        whole = cls(similarity, captions, videos, owner, families, ranks, labels, NO_FACTORS)
        return replace(whole, factors=factors.swapped_counts(whole, truth)) if truth else whole

    @property
    def ids(self) -> dict[str, np.ndarray]:
        """Of what the scores are, the attributes of these names."""
        return {key: getattr(self, key) for key in IDS}

    @property
    def clusters(self) -> dict[str, np.ndarray]:
        """By direction, the family of each query's own video: what is resampled and swapped."""
        return clusters(self.video_of_caption, self.family_of_video)

    def mined(self) -> pd.DataFrame:
        """The pairs that NegNCE's rule mines at margin 0: row, column and `miners.margin_excess`,
        by row."""
        owner, scores = self.video_of_caption, self.similarity
        own = scores[np.arange(len(owner)), owner]
        of_video = np.full(scores.shape[1], -np.inf, np.float32)
        np.maximum.at(of_video, owner, own)
        tables = []
        for rows, block in ranking.blocks(scores):
            excess = (block - np.minimum(own[rows, None], of_video)).astype(float)
            excess[np.arange(len(block)), owner[rows]] = -np.inf
            row, column = np.nonzero(excess > 0)
            table = {"row": row + rows.start, "column": column, "excess": excess[row, column]}
            tables.append(pd.DataFrame(table))
        return pd.concat(tables, ignore_index=True)

    def save(self, folder: Path | str) -> None:
        """Write similarity.npz, ranks.npz and, last, metrics.json: with it the evaluation is whole.
        A `Run` reads them."""
        folder = Path(folder)
        # an older one must not vouch for the new arrays
        (folder / "metrics.json").unlink(missing_ok=True)
        arrays: dict = self.ranks | self.ids
        with files.replacing(folder / "ranks.npz") as part:
            np.savez_compressed(part, **arrays)
        # as it is: compressing costs 20 times the writing (docs/performance.md)
        with files.replacing(folder / "similarity.npz") as part:
            np.savez(part, similarity=self.similarity)
        files.write_gzip(folder / FACTORS, self.factors.to_csv(index=False))
        files.write_json(folder / "metrics.json", self.metrics)


def clusters(video_of_caption: np.ndarray, family_of_video: np.ndarray) -> dict[str, np.ndarray]:
    """See `Evaluation.clusters`."""
    return {"t2v": family_of_video[video_of_caption], "v2t": family_of_video}


def read_arrays(path: Path, limit: int = LARGEST) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name.

    Raises:
        ValueError: another file, a damaged one, or one of more than `limit` bytes.
    """
    files.check_zip(path, limit)
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception as error:  # whatever a damaged file raises
        raise ValueError(f"{path}: expected an .npz file of arrays, got {error!r:.200}") from None


def in_a_file(rows: Iterator[np.ndarray]) -> np.ndarray:
    """Blocks of rows (n, N) float32, one below the other, in a file without a name; on other
    processes than the main one none of them."""
    # beside the runs: the folder for temporary files may be memory
    with tempfile.TemporaryFile(dir=files.home()) as file:
        for block in rows:
            file.write(block.tobytes() if processes.rank() == 0 else b"")
        file.flush()
        whole = np.memmap(file, np.float32) if file.tell() else np.empty(0, np.float32)
        return whole.reshape(-1, block.shape[1])


def _measure(
    scores, owner: np.ndarray, families: np.ndarray, settings: EvalConfig
) -> tuple[dict, np.ndarray, dict]:
    """Of (N_t, N_v) scores by direction: ranks, v2t ranks by first hit, and their numbers."""
    rivals = {"t2v": ranking.count_rivals(scores["t2v"], owner)}
    rivals["v2t"], first_hit = ranking.count_video_rivals(scores["v2t"], owner)
    ranks = {direction: counts.ranks(settings.ties) for direction, counts in rivals.items()}
    metrics = ranking.metrics_of_directions(ranks)
    metrics |= intervals(ranks, clusters(owner, families), settings.bootstrap)
    for ties in BOUNDS:
        bound = {direction: counts.ranks(ties) for direction, counts in rivals.items()}
        bounded = ranking.metrics_of_directions(bound)
        metrics |= {f"{name} {ties}": value for name, value in bounded.items()}
    return ranks, first_hit.ranks(settings.ties), metrics


def intervals(ranks: dict, labels: dict, resamples: int) -> dict[str, float]:
    """Of each metric "low" and "high", from the ranks and `clusters` of both directions."""
    samples: dict[str, np.ndarray] = {}
    for way in DIRECTIONS:
        samples |= prefixed(way, bootstrap_metrics(ranks[way], labels[way], resamples=resamples))
    samples["rsum"] = np.sum([samples[name] for name in ranking.RSUM], axis=0)
    bounds: dict[str, float] = {}
    for name, values in samples.items():
        bounds[f"{name} low"], bounds[f"{name} high"] = interval(values)
    return bounds


def evaluate(
    method: Method, split: Split, config: Config, *, bank: Split | None = None, device="cpu"
) -> Evaluation:
    """Score a method on a split: every caption is a query, every video a candidate, and the other
    way round.

    Each text and each video is encoded once, by one of the processes where there are several; all
    of them call it and get the same, but that only the main one has the matrix. Texts are scored
    batch by batch against all videos, so neither their word features nor their scores are ever
    held together. Videos without frames are left out with their captions, and listed.

    Args:
        method: on `device`; its mode and the random state are left as they were.
        split: its captions and videos, of `Manifest.split`.
        config: the recipe; `data` and `eval` are used, and `train.select` is recorded.
        bank: the training split, for post-processing that needs one (QB-Norm).
        device: where the batches go.

    Raises:
        ValueError: a bank is needed and not given, or the scores hold NaN.
    """
    training = method.training
    method.eval()
    try:
        # Loaders draw a seed: without the fork, evaluating after an epoch would change the training
        # after it.
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            similarity, banks = _score(method, split, config, bank, device)
    finally:
        method.train(training)
    labels = {
        "split": split.name,
        "language": split.language,
        "selection": selection_label(config.train, method),
        "complete": split.complete,
        "missing": split.missing,
    }
    ids = split.captions["caption_id"], split.video_ids, split.video_of_caption
    options: dict = {"banks": banks, "truth": factors.truth_of(split.root), **labels}

    def read_off() -> Evaluation:
        evaluation = Evaluation.from_similarity(similarity, ids, config.eval, **options)
        return replace(evaluation, similarity=similarity[:0])

    return replace(processes.from_main(read_off), similarity=similarity)


def selection_label(train: TrainConfig, method: Method) -> str:
    """Which weights are scored: `train.select`, where the epoch that is best on the test split is
    optimistic; or, without training, one of `AS_GIVEN`: the backbone alone, a method whose new
    parts are as initialised, or a checkpoint."""
    if train.epochs:
        return f"{train.select} (optimistic)" if train.select == "test" else train.select
    adds = any(not name.startswith("backbone.") for name, _ in method.named_parameters())
    is_random = adds or method.backbone.pretrained is None
    return "as given" if train.start_from else "untrained" if is_random else "zero-shot"


def _score(
    method, queries: Split, config, bank: Split | None, device
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(N_t, N_v) float32, and the banks of training queries where a post-processing needs them."""

    def features(encode: Callable, batch: TextVideoBatch) -> Any:
        """On a GPU in the recipe's precision; scores are taken in float32."""
        with precision(config.train, device) if "cuda" in str(device) else nullcontext():
            return encode(batch.to(device)).float()

    def encode(split: Split) -> VideoFeatures:
        loader = tqdm(video_loader(split, config, method.backbone), "videos", leave=False)
        own = [features(method.encode_video, batch).map(Tensor.cpu) for batch in loader]
        return VideoFeatures.cat(processes.collect(own)).to(device)

    def score(split: Split, *candidates: VideoFeatures) -> np.ndarray:
        """(captions, videos) of all `candidates`, side by side."""

        def rows(batch: TextVideoBatch) -> list[np.ndarray]:
            text = features(method.encode_text, batch)
            return [np.hstack([method.similarity(text, videos).cpu() for videos in candidates])]

        loader = text_loader(split, config, method.backbone, method.weighs_words)
        return in_a_file(processes.in_turn(tqdm(loader, "captions", leave=False), rows))

    videos = encode(queries)
    if not NEEDS_BANK & set(config.eval.postprocess):
        return score(queries, videos), {}
    if bank is None:
        raise ValueError(f"{config.eval.postprocess}: expected bank=, the training split, got none")
    # one caption a video keeps the bank small
    first = np.unique(bank.video_of_caption, return_index=True)[1]
    captions = bank.captions.iloc[first].reset_index(drop=True)
    bank = replace(bank, captions=captions, video_of_caption=bank.video_of_caption[first])
    both = score(queries, videos, encode(bank))
    similarity, of_bank_videos = np.split(both, [len(videos)], axis=1)
    return similarity, {"t2v": score(bank, videos), "v2t": of_bank_videos}
