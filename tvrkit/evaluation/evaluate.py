"""One evaluation for every method: similarity once, ranks both ways, intervals, tables,
verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from tvrkit import files
from tvrkit.data.batch import VideoFeatures
from tvrkit.data.loader import text_loader, video_loader
from tvrkit.data.manifest import Manifest, Split
from tvrkit.evaluation import ranks as metrics
from tvrkit.evaluation import statistics
from tvrkit.losses.miners import margin_excess
from tvrkit.models.method import Method
from tvrkit.settings import Config, EvalConfig

WAYS = ("t2v", "v2t")
RSUM = ("R@1", "R@5", "R@10")
V2T_CONVENTION = "max over captions"  # the published one; "first hit" is reported beside it
SAID_BY = {
    "order": {"motion", "then"}
}  # a swapped order is told by naming both motions; other factors by themselves


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A similarity matrix and all that is read off it. Row = caption, column = video.

    Attributes:
        similarity: (N_t, N_v) float32, raw scores of the method.
        caption_ids: (N_t,) str.
        video_ids: (N_v,) str.
        video_of_caption: (N_t,) int64, the column of each caption's own video.
        ranks: "t2v" (N_t,) of every caption and "v2t" (N_v,) of every video, raw, from 1.
        metrics: what metrics.json holds: counts, both directions, intervals, bounds under either
            tie rule, post-processed columns, the rules, and which videos are missing.
    """

    similarity: np.ndarray
    caption_ids: np.ndarray
    video_ids: np.ndarray
    video_of_caption: np.ndarray
    ranks: dict[str, np.ndarray]
    metrics: dict

    @classmethod
    def of(
        cls,
        similarity,
        caption_ids,
        video_ids,
        video_of_caption,
        settings: EvalConfig,
        banks=None,
        **labels,
    ) -> Evaluation:
        """Evaluate a similarity matrix, wherever it comes from.

        Args:
            similarity: (N_t, N_v).
            caption_ids, video_ids, video_of_caption: as the attributes.
            settings: tie rule, bootstrap resamples, post-processing.
            banks: for "qbnorm": "t2v" (N_b, N_v) of training captions, "v2t" (N_b, N_t) of training
                videos.
            labels: further entries of `metrics`.

        Raises:
            ValueError: what `retrieval_ranks` refuses, or "qbnorm" without banks.
        """
        similarity, owner = (
            np.asarray(similarity, np.float32),
            np.asarray(video_of_caption, np.int64),
        )
        scores = {"t2v": similarity, "v2t": similarity.T}
        ranks, result = _measure(scores, owner, settings)
        first_hit = metrics.first_hit(similarity.T, owner, ties=settings.ties)
        columns = {}
        for name in settings.postprocess:
            if name in metrics.NEEDS_BANK and banks is None:
                raise ValueError(
                    f"postprocess {name!r} needs a bank of training queries for both directions"
                )
            process = metrics.POSTPROCESS[name]
            changed = {way: process(scores[way], banks and banks[way]) for way in WAYS}
            columns[name] = _measure(changed, owner, settings)[1]
        counts = {"queries": {way: len(ranks[way]) for way in WAYS}, "videos": len(video_ids)}
        rules = {"ties": settings.ties, "v2t_convention": V2T_CONVENTION}
        extra = {"v2t_first_hit": metrics.retrieval_metrics(first_hit), "postprocess": columns}
        ids = np.asarray(caption_ids, str), np.asarray(video_ids, str)
        return cls(similarity, *ids, owner, ranks, {**labels, **counts, **rules, **result, **extra})

    @property
    def positives(self) -> np.ndarray:
        """(N_t, N_v) bool, a caption and its own video."""
        return self.video_of_caption[:, None] == np.arange(len(self.video_ids))

    def mined(self) -> pd.DataFrame:
        """The pairs that NegNCE's rule mines at margin 0: row, column and `miners.margin_excess`,
        by row."""
        excess = margin_excess(
            torch.from_numpy(self.similarity), torch.from_numpy(self.positives)
        ).numpy()
        rows, columns = np.nonzero(excess > 0)
        return pd.DataFrame(
            {"row": rows, "column": columns, "excess": excess[rows, columns].astype(float)}
        )

    def save(self, folder: Path | str) -> None:
        """Write similarity.npz, ranks.npz and, last, metrics.json: with it the evaluation is
        whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(
            missing_ok=True
        )  # an older one must not vouch for the new arrays
        ids = {key: getattr(self, key) for key in ("caption_ids", "video_ids", "video_of_caption")}
        for name, arrays in (
            ("similarity", {"similarity": self.similarity}),
            ("ranks", {**self.ranks, **ids}),
        ):
            part = folder / f".{name}.part.npz"  # savez appends .npz to other names
            np.savez_compressed(part, **arrays)
            part.replace(folder / f"{name}.npz")
        files.write_json(folder / "metrics.json", self.metrics)

    @classmethod
    def load(cls, folder: Path | str) -> Evaluation:
        """What `save` wrote.

        Raises:
            FileNotFoundError: `folder` holds no finished evaluation.
            ValueError: its files belong to different evaluations.
        """
        folder = Path(folder)
        missing = [
            name
            for name in ("metrics.json", "ranks.npz", "similarity.npz")
            if not (folder / name).exists()
        ]
        if missing:
            raise FileNotFoundError(
                f"{folder} holds no finished evaluation: no {', '.join(missing)}"
            )
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with np.load(folder / "ranks.npz") as file:
            arrays = dict(file)
        with np.load(folder / "similarity.npz") as file:
            similarity = file["similarity"]
        ranks = {way: arrays.pop(way) for way in WAYS}
        found = {way: len(ranks[way]) for way in WAYS}
        if found != result["queries"] or similarity.shape != (found["t2v"], found["v2t"]):
            raise ValueError(
                f"{folder}: files of different evaluations: ranks {found}, metrics {result['queries']}, "
                f"similarity {similarity.shape}"
            )
        return cls(similarity=similarity, ranks=ranks, metrics=result, **arrays)


def _measure(scores: dict, owner: np.ndarray, settings: EvalConfig) -> tuple[dict, dict]:
    """Ranks of scores["t2v"] (N_t, N_v) and scores["v2t"] (N_v, N_t), and what metrics.json says of
    them."""
    v2t = metrics.V2T[V2T_CONVENTION]

    def ranks_of(ties):
        found = metrics.retrieval_ranks(scores["t2v"], owner, ties=ties)
        return {"t2v": found, "v2t": v2t(scores["v2t"], owner, ties=ties)}

    ranks = ranks_of(settings.ties)
    bounds = {ties: ranks_of(ties) for ties in ("optimistic", "pessimistic")}
    clusters = {"t2v": owner, "v2t": None}
    samples = {
        way: statistics.bootstrap_metrics(ranks[way], clusters[way], resamples=settings.bootstrap)
        for way in WAYS
    }
    result = {way: metrics.retrieval_metrics(ranks[way]) for way in WAYS}
    intervals = {
        way: {key: statistics.interval(of) for key, of in samples[way].items()} for way in WAYS
    }
    intervals["rsum"] = statistics.interval(sum(samples[way][key] for way in WAYS for key in RSUM))
    result["rsum"] = sum(result[way][key] for way in WAYS for key in RSUM)
    result["interval"] = intervals
    result["bounds"] = {
        way: {ties: metrics.retrieval_metrics(found[way]) for ties, found in bounds.items()}
        for way in WAYS
    }
    return ranks, result


def evaluate(
    method: Method,
    manifest: Manifest,
    config: Config,
    *,
    split: str | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Score a method on a split: every caption is a query, every video a candidate, and the other
    way round.

    Each text and each video is encoded once. Texts are scored batch by batch against all videos, so
    their word features are never held together. Videos without frames are left out with their
    captions, and listed.

    Args:
        method: on `device`; its mode and the random state are left as they were.
        manifest: the prepared data set.
        config: the recipe; `data` and `eval` are used, and `train.select` is recorded.
        split: name of the split; None = `config.eval.split`.
        device: where the batches go.

    Raises:
        ValueError: the split is unknown or nothing of it is there, or the scores hold NaN.
    """
    name = split or config.eval.split
    queries = manifest.split(name, config.data.language)
    if not queries.video_ids:
        raise ValueError(
            f"split {name!r} of {manifest.root}: none of its {len(queries.missing)} videos has frames"
        )
    training = method.training
    method.eval()
    try:
        # Loaders draw a seed: without the fork, evaluating after an epoch would change the training
        # after it.
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            similarity, banks = _score(method, manifest, config, queries, device)
    finally:
        method.train(training)
    selection = config.train.select + (" (optimistic)" if config.train.select == "test" else "")
    labels = {"split": name, "language": config.data.language, "selection": selection}
    partial = manifest.card.get(
        "partial", False
    )  # prepared with --allow-partial; shapes has no such key
    labels |= {"complete": not (queries.missing or partial), "missing": queries.missing}
    ids = queries.captions["caption_id"], queries.video_ids, queries.video_of_caption
    return Evaluation.of(similarity, *ids, config.eval, banks, **labels)


def _score(method, manifest, config, queries: Split, device) -> tuple[np.ndarray, dict | None]:
    """(N_t, N_v) float32, and the banks of training queries where a post-processing needs them."""

    def encode(split: Split) -> VideoFeatures:
        loader = tqdm(video_loader(split, config, method.backbone, manifest), "videos", leave=False)
        return VideoFeatures.cat([method.encode_video(batch.to(device)) for batch in loader])

    def score(split: Split, *candidates: VideoFeatures) -> list[np.ndarray]:
        """One (captions, videos) matrix for each of `candidates`."""
        rows = []
        for batch in tqdm(
            text_loader(split, config, method.backbone, manifest), "captions", leave=False
        ):
            text = method.encode_text(batch.to(device))
            rows.append(
                [method.similarity(text, videos).float().cpu().numpy() for videos in candidates]
            )
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    videos = encode(queries)
    if not metrics.NEEDS_BANK & set(config.eval.postprocess):
        return score(queries, videos)[0], None
    bank = manifest.split("train", config.data.language)
    first = np.unique(bank.video_of_caption, return_index=True)[
        1
    ]  # one caption a video keeps the bank small
    captions = bank.captions.iloc[first].reset_index(drop=True)
    bank = replace(bank, captions=captions, video_of_caption=bank.video_of_caption[first])
    similarity, of_bank_videos = score(queries, videos, encode(bank))
    return similarity, {"t2v": score(bank, videos)[0], "v2t": of_bank_videos.T}


def compare(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """The table of a paper, with 95 % intervals: one row per method and direction.

    Post-processed scores are columns of their own ("dsl R@1"). `rsum` is the sum of R@1, R@5 and
    R@10 of both directions.

    Args:
        evaluations: name of the method -> its evaluation; all of the same queries and candidates.

    Raises:
        ValueError: the evaluations are not of the same captions and videos, or not by the same tie
            rule.
    """
    _same_queries(evaluations)
    rows = []
    for name, evaluation in evaluations.items():
        found = evaluation.metrics
        for way in WAYS:
            row = {"method": name, "direction": way, "queries": found["queries"][way]} | _cells(
                found, way
            )
            for process, columns in found["postprocess"].items():
                row |= {f"{process} {key}": cell for key, cell in _cells(columns, way).items()}
            rows.append(
                row | {key: found[key] for key in ("split", "selection", "ties", "complete")}
            )
    return pd.DataFrame(rows)


def _cells(found: dict, way: str) -> dict[str, str]:
    numbers = {**found[way], "rsum": found["rsum"]}
    bounds = {**found["interval"][way], "rsum": found["interval"]["rsum"]}
    return {
        key: f"{numbers[key]:.1f} [{bounds[key][0]:.1f}, {bounds[key][1]:.1f}]" for key in numbers
    }


def pooled(seeds: Sequence, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of several seeds one after the other, and of which video each query is: the same number
    in every seed.

    What resamples or swaps videos then takes all captions of a video, with all seeds, together.
    `seeds` are evaluations, or runs of which the ranks were kept and the similarity matrix was not.
    """
    videos = [
        one.video_of_caption if way == "t2v" else np.arange(len(one.ranks[way])) for one in seeds
    ]
    return np.concatenate([one.ranks[way] for one in seeds]), np.concatenate(videos)


def pairwise(
    evaluations: Mapping[str, Evaluation | Sequence[Evaluation]],
    *,
    metric: str = "R@1",
    alpha: float = statistics.ALPHA,
) -> pd.DataFrame:
    """Every method against every other, both directions: is a better than b, or can't one tell?

    Videos are swapped and resampled, not captions. The verdict rests on `p_holm`, the p-value
    adjusted for all comparisons of a direction; `p_value` and `p_mcnemar` are not adjusted. It is
    about these weights: the mean over the seeds that are there, not over those that might have been
        (`statistics.compare_seeds`).

    Args:
        evaluations: name of the method -> its evaluation, or those of its seeds, equally many of
            each method.
        metric: R@1, R@5, R@10 or R@50.
        alpha: level of the verdict and of the interval.

    Returns:
        DataFrame: a, b, direction, metric, difference (points), low, high, effect (queries, mean
        over seeds), queries (of one seed), seeds, p_value, p_mcnemar, p_holm, verdict.

    Raises:
        ValueError: as `compare`; fewer than two methods, or other numbers of seeds.
    """
    if len(evaluations) < 2:
        raise ValueError(f"expected two evaluations or more, got {len(evaluations)}")
    methods = {name: _seeds(of) for name, of in evaluations.items()}
    _same_queries(
        {(name, number): one for name, of in methods.items() for number, one in enumerate(of)}
    )
    seeds = {name: len(of) for name, of in methods.items()}
    if len(set(seeds.values())) > 1:
        raise ValueError(f"expected equally many seeds of each method, got {seeds}")
    tables = []
    for way in WAYS:
        ranks, rows = {name: pooled(of, way) for name, of in methods.items()}, []
        for (a, (first, videos)), (b, (second, _)) in combinations(ranks.items(), 2):
            found = statistics.compare_ranks(first, second, videos, metric=metric, alpha=alpha)
            low, high = found.interval
            row = {
                "a": a,
                "b": b,
                "direction": way,
                "metric": metric,
                "difference": found.difference,
            }
            row |= {"low": low, "high": high, "effect": found.effect / seeds[a]}
            row |= {"queries": found.queries // seeds[a], "seeds": seeds[a]}
            rows.append(row | {"p_value": found.p_value, "p_mcnemar": found.p_mcnemar})
        table = pd.DataFrame(rows)
        table["p_holm"] = statistics.holm(table["p_value"])
        pairs = zip(table["difference"], table["p_holm"], strict=True)
        tables.append(table.assign(verdict=[statistics.verdict(*pair, alpha) for pair in pairs]))
    return pd.concat(tables, ignore_index=True)


def _seeds(evaluations: Evaluation | Sequence[Evaluation]) -> list[Evaluation]:
    return [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)


def agreement(evaluations: Mapping[str, Evaluation], *, k: int = 1) -> pd.DataFrame:
    """(M, M) percent of the captions that both of two evaluations find within K, or both miss.

    Raises:
        ValueError: as `compare`.
    """
    _same_queries(evaluations)
    hits = np.array([one.ranks["t2v"] <= k for one in evaluations.values()])
    same = (hits[:, None] == hits).mean(axis=2)
    return pd.DataFrame(100 * same, index=list(evaluations), columns=list(evaluations))


def _same_queries(evaluations: Mapping[object, Evaluation]) -> None:
    if not evaluations:
        raise ValueError("expected one evaluation or more, got none")
    (name, first), *others = evaluations.items()
    for other, evaluation in others:
        for key in ("caption_ids", "video_ids", "video_of_caption"):
            a, b = getattr(first, key), getattr(evaluation, key)
            if not np.array_equal(a, b):
                raise ValueError(
                    f"{name} and {other} are not of the same queries: {len(a)} and {len(b)} {key}"
                )
        rules = first.metrics["ties"], evaluation.metrics["ties"]
        if rules[0] != rules[1]:
            raise ValueError(
                f"{name} and {other} count ties differently: {rules[0]} and {rules[1]}"
            )


def per_factor_accuracy(evaluations: Evaluation | Sequence[Evaluation], truth) -> pd.DataFrame:
    """Which swapped factor fools the model: accuracy on shapes videos that differ in exactly one
    factor.

    A pair is a caption that mentions the factor and a video of the split that differs from its own
    in that factor only. It is right if the own video scores higher; a tie is wrong. Chance is 50 %.

    Args:
        evaluations: on a split of shapes; of several seeds, the mean.
        truth: `tvrkit.shapes.scenes.Truth` of the data set.

    Returns:
        DataFrame, one row per factor: factor, accuracy (percent), low, high (95 %, families
        resampled; NaN where there is one family only), pairs, captions, families (of one seed).
    """
    seeds = _seeds(evaluations)
    evaluation = seeds[0]
    column = {video: index for index, video in enumerate(evaluation.video_ids)}
    rivals = {video: truth.swapped(video) for video in column}
    found = []
    for row, (caption, owner) in enumerate(
        zip(evaluation.caption_ids, evaluation.video_of_caption, strict=True)
    ):
        said = set(truth.captions.at[caption, "mentioned"])
        for factor, videos in rivals[evaluation.video_ids[owner]].items():
            if (SAID_BY.get(factor) or {factor}) <= said:
                found += [
                    (factor, row, owner, column[video]) for video in videos if video in column
                ]
    pairs = pd.DataFrame(found, columns=["factor", "row", "owner", "rival"])
    own, rival = (
        np.array([one.similarity[pairs.row, pairs[side]] for one in seeds])
        for side in ("owner", "rival")
    )
    pairs["family"] = truth.videos.family.loc[evaluation.video_ids[pairs.owner]].to_numpy()
    rows = []
    for factor, group in pairs.groupby("factor"):
        counts = {
            "pairs": len(group),
            "captions": group["row"].nunique(),
            "families": group["family"].nunique(),
        }
        ranks = 1 + (own[:, group.index] <= rival[:, group.index]).ravel()
        samples = statistics.bootstrap_metrics(ranks, np.tile(group["family"], len(seeds)))["R@1"]
        low, high = statistics.interval(samples) if counts["families"] > 1 else (np.nan, np.nan)
        accuracy = metrics.retrieval_metrics(ranks)["R@1"]
        rows.append({"factor": factor, "accuracy": accuracy, "low": low, "high": high, **counts})
    return pd.DataFrame(
        rows, columns=["factor", "accuracy", "low", "high", "pairs", "captions", "families"]
    )
