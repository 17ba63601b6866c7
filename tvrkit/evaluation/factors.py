"""What only the truth of shapes can say of an evaluation: families, ceilings, swapped factors."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from tvrkit.evaluation.statistics import ratio_interval
from tvrkit.shapes.truth import FOLDER, Truth

# words that tell a swapped order apart: both motions; another factor is told by itself
NEEDED = {"order": {"motion", "then"}, "direction": {"motion"}}
COUNTED = ["factor", "family", "right", "pairs"]


def truth_of(root: Path | str) -> Truth | None:
    """The truth of a prepared data set, None where it has none."""
    changed = tuple(file.stat().st_mtime_ns for file in (Path(root) / FOLDER).glob("*.jsonl"))
    return _opened(Path(root), changed) if changed else None


@lru_cache(maxsize=2)
def _opened(root: Path, changed: tuple[int, ...]) -> Truth:
    """Every epoch's evaluation asks for it; files that were written anew are read anew."""
    return Truth.open(root)


def families_of(video_ids: Sequence[str] | np.ndarray, truth: Truth | None) -> np.ndarray:
    """(N_v,) int64, the same number for videos that share scenes: families and duplicates; without
    truth a number for each video."""
    if truth is None:
        return np.arange(len(video_ids))
    return np.unique(truth.videos.family.loc[list(video_ids)].to_numpy(str), return_inverse=True)[1]


def ceilings(caption_ids, video_ids, truth: Truth) -> dict[str, float]:
    """R@1 of a perfect reader, who guesses among all that fits what is asked.

    Captions leave things out, and some scenes are shown twice: to a caption all videos fit of which
    it is true, to a video the captions of all videos with its scene.
    """
    fitting = (truth.relevance(caption_ids, video_ids) == 1).sum(axis=1)
    scenes = truth.factors.loc[list(video_ids)]
    same = scenes.groupby([*scenes], as_index=False)["shape"].transform("size")
    recall = {"t2v": 100 * (1 / fitting).mean(), "v2t": 100 * (1 / same).mean()}
    return {f"{way} R@1 ceiling": float(value) for way, value in recall.items()}


def swapped_counts(evaluation, truth: Truth) -> pd.DataFrame:
    """How many of the swapped pairs of each factor and family are right.

    A pair is a caption that mentions the factor and a video of the split that differs from its own
    in that factor only. It is right if the own video scores higher; a tie is wrong.

    Returns:
        DataFrame: factor, family, right, pairs.
    """
    names, owners = evaluation.video_ids, evaluation.video_of_caption
    column, pairs = {name: place for place, name in enumerate(names)}, []
    swapped, families = [truth.swapped(name) for name in names], truth.videos.family[names]
    mentioned = truth.captions.mentioned[evaluation.caption_ids]
    for own, said, scores in zip(owners, mentioned, evaluation.similarity, strict=True):
        for factor, rivals in swapped[own].items():
            if NEEDED.get(factor, {factor}) <= set(said):
                right = [scores[own] > scores[column[rival]] for rival in rivals if rival in column]
                pairs.append((factor, families.iloc[own], sum(right), len(right)))
    table = pd.DataFrame(pairs, columns=COUNTED)
    return table[table["pairs"] > 0].groupby(["factor", "family"], as_index=False).sum()


def per_factor_accuracy(seeds: Sequence) -> pd.DataFrame:
    """Which swapped factor fools the model: share of `swapped_counts`' pairs that are right. Chance
    is 50 %.

    Args:
        seeds: evaluations, or runs, of one method on a split of shapes; all of them are pooled.

    Returns:
        DataFrame, one row per factor: factor, accuracy (percent), low, high (95 %, families
        resampled with all seeds; NaN where there is one family only), pairs, families (of one
        seed).
    """
    counts, rows = pd.concat([seed.factors for seed in seeds]), []
    for factor, group in counts.groupby("factor"):
        by_family = group.groupby("family").sum(numeric_only=True)
        bounds = ratio_interval(100 * by_family["right"], by_family["pairs"])
        bounds = bounds if len(by_family) > 1 else (bounds[0], np.nan, np.nan)
        rows.append((factor, *bounds, by_family["pairs"].sum() // len(seeds), len(by_family)))
    columns = ["factor", "accuracy", "low", "high", "pairs", "families"]
    return pd.DataFrame(rows, columns=columns)
