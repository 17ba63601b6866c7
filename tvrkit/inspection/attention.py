"""Is what a model looks at the right thing? Arithmetic of the notebooks, scored on shapes' truth.

Arrays in, numbers and tables out; figures are in `tvrkit.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from unittest import mock

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.data.manifest import Manifest
from tvrkit.data.sampling import sample
from tvrkit.evaluation import ranks as metrics
from tvrkit.models.method import Method
from tvrkit.settings import DataConfig

Span = tuple[int, int]
SHARES = (0.125, 0.25, 0.5, 0.75)  # of the tokens that a deletion test removes
BLOCK = 64  # clips, or texts, at a time


def frames_seen(
    manifest: Manifest, data: DataConfig, video_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """What an evaluation under these settings sees of a video: (F,) stored indices, (F, H, W, 3)
    uint8."""
    indices = indices_seen(manifest, data, video_id)
    return indices, manifest.frames.read(video_id, indices)


def indices_seen(manifest: Manifest, data: DataConfig, video_id: str) -> np.ndarray:
    """(F,) which stored frames of a video an evaluation under these settings sees."""
    return sample(data.eval_sampling, manifest.frames.count(video_id), data.max_frames)


def word_spans(caption: str) -> list[Span]:
    """(start, end) of the caption's words, end excluded; of its characters where it has no blanks
    (zh)."""
    if " " not in caption:
        return [(place, place + 1) for place in range(len(caption))]
    words, place = [], 0
    for word in caption.split():
        start = caption.index(word, place)
        place = start + len(word)
        words.append((start, place))
    return words


def overlapping(spans: Sequence[Span], others: Sequence[Sequence]) -> np.ndarray:
    """(S,) bool: whether each of S spans shares a character with any of `others` (they begin start,
    end)."""
    return _shared(spans, [other[:2] for other in others]).any(axis=1)


def _shared(spans: Sequence[Span], others: Sequence[Span]) -> np.ndarray:
    """(S, O) bool: which spans share a character."""
    starts, ends = np.array(spans, int).reshape(-1, 2).T
    other_starts, other_ends = np.array(others, int).reshape(-1, 2).T
    return (starts[:, None] < other_ends) & (other_starts < ends[:, None])


def per_word(values, tokens: Sequence[tuple[int, Span]], words: Sequence[Span]) -> np.ndarray:
    """Values of tokens summed over the tokens of each word.

    Args:
        values: (L,) or (L, ...) float, one per token column.
        tokens: (column, span) of the caption's tokens, see `tvrkit.data.text.token_spans`.
        words: spans of the W words.

    Returns:
        (W,) or (W, ...) float; 0 for a word that was cut off.
    """
    columns = [column for column, _ in tokens]
    belongs = _shared(words, [span for _, span in tokens])
    return np.tensordot(belongs, np.asarray(values, float)[columns], 1)


def auc(scores, truth) -> float:
    """Probability that a true item scores above a false one, ties counting half (Mann-Whitney); 0.5
    = chance.

    Args:
        scores: (N,) float.
        truth: (N,) bool.

    Returns:
        NaN where `truth` has one class only.
    """
    truth = np.asarray(truth, bool)
    true, false = int(truth.sum()), int((~truth).sum())
    if not true or not false:
        return float("nan")
    ranks = stats.rankdata(np.asarray(scores, float))
    return float((ranks[truth].sum() - true * (true + 1) / 2) / (true * false))


def mean_interval(
    values, clusters=None, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the values that are not NaN and its 95 % percentile bootstrap interval (low, high).

    Args:
        values: (N,) float.
        clusters: (N,) labels; values of one label (captions of one video) are averaged first and
            drawn together.
        resamples: bootstrap samples.
        seed: of the draws.

    Returns:
        All NaN where there are fewer than two such values, or clusters.
    """
    values = np.asarray(values, float)
    if clusters is not None:
        values = pd.Series(values).groupby(np.asarray(clusters)).mean().to_numpy()
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return (float("nan"),) * 3
    if np.ptp(values) == 0:
        return (float(values[0]),) * 3
    options = {"n_resamples": resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    bounds = stats.bootstrap((values,), np.mean, **options).confidence_interval
    return float(values.mean()), float(bounds.low), float(bounds.high)


# --- deletion test
#  ------------------------------------------------------------------------------------------


def kept(priority, share: float, rng: np.random.Generator) -> np.ndarray:
    """(W,) bool: what is left when a share of W >= 1 items is removed, those of the highest
    priority first.

    At least one item goes (none at share 0) and one stays. Ties are broken at random: where all
    priorities are equal, the removal is a random one.
    """
    priority = np.asarray(priority, float)
    count = min(max(round(share * len(priority)), 1), len(priority) - 1) if share else 0
    order = np.lexsort((rng.random(len(priority)), -priority))
    left = np.ones(len(priority), bool)
    left[order[:count]] = False
    return left


def deletion_test(
    priorities: Mapping[str, Sequence],
    score: Callable[[list[np.ndarray]], np.ndarray],
    own,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> pd.DataFrame:
    """What removing tokens does to the own video's score and rank, by the order in which they are
    removed.

    Weights that say what counts must hurt more when the highest go first than when random ones go
    (Samek et al., Evaluating the Visualization of What a Deep Neural Network Has Learned, 2017).

    Args:
        priorities: by order of removal, (W_i,) float for each of N queries; "random" is added.
        score: (N, N_v) scores of the queries, given which tokens (W_i,) bool each of them keeps.
        own: (N,) int, the column of each query's own video.
        shares: of the tokens removed, above 0.
        seed: of random removals and ties.

    Returns:
        Rows of order, share, query; `margin`, by how much the own video's score exceeds the mean of
        the others', in percent of what it is on average with nothing removed; `hit`, 100 where the
        own video comes first, else 0.
    """
    rng, own = np.random.default_rng(seed), np.asarray(own)
    some = next(iter(priorities.values()))
    priorities = {"random": [rng.random(len(row)) for row in some], **priorities}
    whole, hit = _margin(score([kept(row, 0.0, rng) for row in some]), own)
    parts = []
    for order, rows in priorities.items():
        found = {0.0: (whole, hit)}
        found |= {
            share: _margin(score([kept(row, share, rng) for row in rows]), own) for share in shares
        }
        for share, (margin, hits) in found.items():
            columns = {"margin": 100 * margin / whole.mean(), "hit": 100.0 * hits}
            parts.append(
                pd.DataFrame({"order": order, "share": share, "query": range(len(own)), **columns})
            )
    return pd.concat(parts, ignore_index=True)


def _margin(scores: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Own score less the mean of the others', and whether it is the best, both (N,)."""
    scores, rows = np.asarray(scores, float), np.arange(len(own))
    others = (scores.sum(axis=1) - scores[rows, own]) / (scores.shape[1] - 1)
    return scores[rows, own] - others, metrics.retrieval_ranks(scores, own) == 1


def deletion_gap(table: pd.DataFrame, column: str, order: str = "highest") -> np.ndarray:
    """(N,) by how much more removing `order` hurts each query than removing random tokens, mean
    over the shares.

    Args:
        table: of `deletion_test`.
        column: "margin" or "hit".
        order: of removal. Above 0, it removes what counts.
    """
    removed = table[table.share > 0].pivot_table(index="query", columns="order", values=column)
    return (removed["random"] - removed[order]).to_numpy()


def deletion_curves(
    table: pd.DataFrame, column: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Means (S,) of a `deletion_test` column by order, over the shares removed, and their intervals
    (2, S)."""
    found = (
        table.groupby(["order", "share"])[column]
        .apply(mean_interval)
        .unstack("share")
        .loc[table.order.unique()]
    )
    bounds = {order: np.array(row.tolist()).T for order, row in found.iterrows()}
    return {order: row[0] for order, row in bounds.items()}, {
        order: row[1:] for order, row in bounds.items()
    }


@torch.inference_mode()
def encode_videos(method: Method, frames: Tensor, mask: Tensor) -> VideoFeatures:
    """`method.encode_video` of clips whose frames went through the image tower before, frame by
    frame.

    Args:
        method: any.
        frames: (N, F, D) float of `backbone.encode_frames`.
        mask: (N, F) bool.
    """
    batches = [
        TextVideoBatch(frames=frames[block], frame_mask=mask[block])
        for block in _blocks(len(frames))
    ]
    with mock.patch.object(method.backbone, "encode_frames", lambda features: features):
        return VideoFeatures.cat([method.encode_video(batch) for batch in batches])


def without_frames(
    frames: Tensor, mask: Tensor, rows: Sequence[np.ndarray]
) -> tuple[Tensor, Tensor]:
    """Frames (N, F, D) and mask (N, F) of the shorter clips that keep what `rows`, (F_i,) bool
    each, says."""
    stays = torch.zeros_like(mask)
    for place, row in enumerate(rows):
        stays[place, : len(row)] = torch.from_numpy(row).to(mask.device)
    stays &= mask
    order = (~stays).to(torch.uint8).argsort(dim=1, stable=True)
    left = stays.gather(1, order)
    return frames.gather(1, order[..., None].expand_as(frames)) * left[..., None], left


@torch.inference_mode()
def matched_scores(method: Method, texts: TextFeatures, videos: VideoFeatures) -> np.ndarray:
    """(N,) float32 scores of text i with video i, from small blocks of the similarity."""
    parts = [
        method.similarity(texts[block], videos[block]).diagonal() for block in _blocks(len(texts))
    ]
    return torch.cat(parts).float().cpu().numpy()


def _blocks(rows: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, rows, BLOCK)]


# --- concepts, frames and patches
#  -----------------------------------------------------------------------------


def mean_cosine(vectors) -> np.ndarray:
    """(N,) mean cosine of all pairs among Q vectors (N, Q, D): 1 = all alike, 0 = at right angles
    on average."""
    vectors = np.asarray(vectors, float)
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    count = vectors.shape[1]
    return ((unit.sum(axis=1) ** 2).sum(axis=1) - count) / (count * (count - 1))


def attention_lift(
    attention, tokens: Sequence[tuple[int, Span]], spans: Sequence[Span]
) -> np.ndarray:
    """How much more attention some words get than an even spread over the caption's words would
    give them.

    Args:
        attention: (Q, L) float >= 0.
        tokens: (column, span) of the caption's tokens, see `tvrkit.data.text.token_spans`.
        spans: of the words.

    Returns:
        (Q,) float, 1 = even; NaN where none of the words was kept.
    """
    attention, columns = np.asarray(attention, float), [column for column, _ in tokens]
    asked = overlapping([span for _, span in tokens], spans)
    if not asked.any():
        return np.full(len(attention), np.nan)
    of_words = attention[:, columns]
    return of_words[:, asked].sum(axis=1) / of_words.sum(axis=1) / asked.mean()


def informative_share(marked, informative) -> float:
    """Share (%) of the marked frames, or words, (F,) bool that are informative (F,) bool; NaN where
    none is marked."""
    marked = np.asarray(marked, bool)
    return (
        100 * float(np.asarray(informative, bool)[marked].mean()) if marked.any() else float("nan")
    )


def attention_on(attention, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share (%) of patch attention (N, g, g) on pixels (N, H, W) bool, and those pixels' share of
    the area, (N,).

    A patch's attention is spread evenly over its pixels; H and W are multiples of g.
    """
    attention = np.asarray(attention, float)
    count, grid = attention.shape[:2]
    height, width = pixels.shape[1] // grid, pixels.shape[2] // grid
    covered = pixels.reshape(count, grid, height, grid, width).mean(axis=(2, 4))
    share = (attention * covered).sum(axis=(1, 2)) / attention.sum(axis=(1, 2))
    return 100 * share, 100 * covered.mean(axis=(1, 2))
