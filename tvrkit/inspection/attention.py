"""What does a model look at, and does its score rest on it? Words, frames and deletion tests.

Arrays in, numbers and tables out; figures are in `tvrkit.figures`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tvrkit.data.batch import TextFeatures, VideoFeatures, pieces
from tvrkit.data.features import padded
from tvrkit.data.loader import video_loader
from tvrkit.data.manifest import Manifest, Split
from tvrkit.data.sampling import sample
from tvrkit.evaluation.ranks import retrieval_ranks
from tvrkit.inspection.diagnostics import Interval, mean_interval
from tvrkit.models.method import Method
from tvrkit.settings import Config, DataConfig
from tvrkit.training.score import encode_texts

Span = tuple[int, int]
Rows = Sequence[np.ndarray]
SHARES = (0.125, 0.25, 0.5, 0.75)  # of the tokens that a deletion test removes
BLOCK = 64  # clips, or texts, at a time
GAPS = {"margin": "score (% of whole)", "hit": "R@1 (points)"}  # what a deletion test measures


def frames_seen(
    manifest: Manifest, data: DataConfig, video_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """What an evaluation under these settings sees of a video: (F,) stored indices, (F, H, W, 3)
    uint8."""
    indices = sample(data.eval_sampling, manifest.frames.count(video_id), data.max_frames)
    return indices, manifest.frames.read(video_id, indices.tolist())


def word_spans(caption: str) -> list[Span]:
    """(start, end) of the caption's words, end excluded; of its characters where it has no blanks
    (zh)."""
    return [word.span() for word in re.finditer(r"\S+" if " " in caption else r"(?s).", caption)]


def shared_characters(spans: Sequence[Span], others: Sequence[Sequence]) -> np.ndarray:
    """(S, O) bool: which of S spans share a character with which of O `others` (they begin start,
    end)."""
    sides = [[span[:2] for span in spans], [span[:2] for span in others]]
    (starts, ends), (begins, stops) = (np.array(side, int).reshape(-1, 2).T for side in sides)
    return (starts[:, None] < stops) & (begins < ends[:, None])


def overlapping(spans: Sequence[Span], others: Sequence[Sequence]) -> np.ndarray:
    """(S,) bool: whether each of S spans shares a character with any of `others`."""
    return np.any(shared_characters(spans, others), axis=1)


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
    belongs = shared_characters(words, [span for _, span in tokens])
    return np.tensordot(belongs, np.asarray(values, float)[columns], 1)


def words_over_frames(
    maps: Mapping[str, np.ndarray], caption: str, tokens: Sequence[tuple[int, Span]]
) -> tuple[np.ndarray, list[str], str]:
    """What a score looked at, whatever the method.

    Args:
        maps: the method's `explain` of one pair of L tokens and F frames.
        caption: as its tokenizer cleans it.
        tokens: (column, span) of its tokens, see `tvrkit.data.text.token_spans`.

    Returns:
        (W, F) float of words and frames; what stands for each row; what the numbers are. DMAE has
        cosines, means over a word's tokens; GLSCL the share by way of the concepts, which look at
        both; other methods compare the frames with the sentence alone, W = 1.
    """
    words = word_spans(caption)
    labels = [caption[start:end] for start, end in words]
    if "word_frame" in maps:
        counts = per_word(np.ones(len(maps["word_frame"])), tokens, words)[:, None]
        return per_word(maps["word_frame"], tokens, words) / np.maximum(counts, 1), labels, "cosine"
    if "concept_words" in maps:
        shares = maps["concept_words"].T @ maps["concept_frames"]
        return per_word(shares, tokens, words), labels, "share by way of concepts"
    return maps["frame_text"][None], ["sentence"], "cosine"


@dataclass(frozen=True)
class EncodedSplit:
    """A split as a method sees it; N_t texts, N_v videos.

    Attributes:
        method, split, config: what was encoded with what.
        texts: features of the captions.
        videos: features of the videos.
        frames: (N_v, F, D) of the image tower, before the method.
        frame_mask: (N_v, F) bool.
    """

    method: Method
    split: Split
    config: Config
    texts: TextFeatures
    videos: VideoFeatures
    frames: Tensor
    frame_mask: Tensor

    @torch.inference_mode()
    def scores(self, texts: TextFeatures) -> np.ndarray:
        """(N, N_v) float32 scores of texts with all videos."""
        parts = [self.method.similarity(some, self.videos) for some in pieces(texts, BLOCK)]
        return torch.cat(parts).float().cpu().numpy()

    @torch.inference_mode()
    def scores_of_words(self, words: Sequence[Sequence[str]], kept: Rows) -> np.ndarray:
        """(N, N_v) float32 scores of captions with the words that are kept: tokenised, tagged and
        encoded anew."""
        blank = "" if self.split.language == "zh" else " "
        texts = [blank.join(compress(*row)) for row in zip(words, kept, strict=True)]
        length, language = self.config.data.max_words, self.config.data.language
        return self.scores(encode_texts(self.method, texts, length, language))

    def scores_of_shorter(self, whole: np.ndarray, rows: np.ndarray, kept: Rows) -> np.ndarray:
        """(N, N_v) float32 scores of captions `rows` where their own videos lose frames.

        The videos are as if filmed shorter, and encoded again behind the image tower.

        Args:
            whole: (N, N_v) scores with nothing removed.
            rows: (N,) of the captions.
            kept: which frames (F_i,) bool the own video of each keeps.
        """
        own, scores = self.split.video_of_caption[rows], whole.copy()
        pairs = zip(self.frames[own], kept, strict=True)
        left = [clip[np.flatnonzero(stays)] for clip, stays in pairs]
        frames, mask = padded(left, self.frames.shape[1])
        videos = encode_videos(self.method, frames, mask.to(frames.device))
        scores[np.arange(len(rows)), own] = matched_scores(self.method, self.texts[rows], videos)
        return scores


@torch.inference_mode()
def encode_split(method: Method, split: Split, config: Config) -> EncodedSplit:
    """Encode the captions and videos of a split, on the device of the method."""
    device = method.backbone.logit_scale.device
    batches = (batch.to(device) for batch in video_loader(split, config, method.backbone))
    parts = [(method.backbone.encode_frames(batch.frames), batch.frame_mask) for batch in batches]
    frames, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    captions, data = split.captions["caption"].tolist(), config.data
    texts = encode_texts(method, captions, data.max_words, data.language)
    videos = encode_videos(method, frames, mask)
    return EncodedSplit(method, split, config, texts, videos, frames, mask)


@torch.inference_mode()
def encode_videos(method: Method, frames: Tensor, mask: Tensor) -> VideoFeatures:
    """`method.video_features` in blocks: clips whose frames went through the image tower before.

    Args:
        method: any.
        frames: (N, F, D) float of `backbone.encode_frames`.
        mask: (N, F) bool.
    """
    blocks = zip(pieces(frames, BLOCK), pieces(mask, BLOCK), strict=True)
    return VideoFeatures.cat([method.video_features(*block) for block in blocks])


@torch.inference_mode()
def matched_scores(method: Method, texts: TextFeatures, videos: VideoFeatures) -> np.ndarray:
    """(N,) float32 scores of text i with video i, from small blocks of the similarity."""
    blocks = zip(pieces(texts, BLOCK), pieces(videos, BLOCK), strict=True)
    parts = [method.similarity(*block).diagonal() for block in blocks]
    return torch.cat(parts).float().cpu().numpy()


def remaining(priority, share: float, rng: np.random.Generator) -> np.ndarray:
    """(W,) bool: what is left when a share of W >= 1 items is removed, those of the highest
    priority first.

    At least one item goes (none at share 0) and one stays. Ties are broken at random: where all
    priorities are equal, the removal is a random one.
    """
    priority = np.asarray(priority, float)
    count = min(max(round(share * len(priority)), 1), len(priority) - 1) if share else 0
    left = np.ones(len(priority), bool)
    left[np.lexsort((rng.random(len(priority)), -priority))[:count]] = False
    return left


def deletion_test(
    weights: Rows,
    score: Callable[[list[np.ndarray]], np.ndarray],
    own,
    *,
    also: Mapping[str, Rows] | None = None,
) -> pd.DataFrame:
    """What removing tokens does to the own video's score and rank, by the order in which they are
    removed, for each of `SHARES`.

    Weights that say what counts must hurt more when the highest go first than when random ones go
    (Samek et al., Evaluating the Visualization of What a Deep Neural Network Has Learned, 2017).

    Args:
        weights: (W_i,) float for each of N queries. Tokens are removed in "random" order, the
            "highest" weights first, and the "lowest" first.
        score: (N, N_v) scores of the queries, given which tokens (W_i,) bool each of them keeps.
        own: (N,) int, the column of each query's own video.
        also: further orders of removal: priorities (W_i,) by name.

    Returns:
        Rows of order, share, query; `margin`, by how much the own video's score exceeds the mean of
        the others', in percent of what it is on average with nothing removed; `hit`, 100 where the
        own video comes first, else 0.
    """
    rng, own = np.random.default_rng(0), np.asarray(own)
    orders: dict[str, Rows] = {"random": [rng.random(len(row)) for row in weights]}
    orders |= {"highest": weights, "lowest": [-np.asarray(row) for row in weights], **(also or {})}

    def without(order: str, share: float) -> pd.DataFrame:
        left = [remaining(row, share, rng) for row in orders[order]]
        measured = {"order": order, "share": share, "query": range(len(own))}
        return pd.DataFrame(measured | _margin_and_hit(score(left), own))

    whole, tables = without("random", 0.0), []
    for order in orders:
        tables += [whole.assign(order=order), *(without(order, share) for share in SHARES)]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(margin=100 * table["margin"] / whole["margin"].mean())


def _margin_and_hit(scores: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """Own score less the mean of the others', and 100 where it is the best, both (N,)."""
    scores, rows = np.asarray(scores, float), np.arange(len(own))
    others = (scores.sum(axis=1) - scores[rows, own]) / (scores.shape[1] - 1)
    hit = 100.0 * (retrieval_ranks(scores, own) == 1)
    return {"margin": scores[rows, own] - others, "hit": hit}


def deletion_gaps(table: pd.DataFrame, what: str) -> dict[str, Interval]:
    """By how much more removing the highest weights hurts than removing random tokens: titles with
    means over shares and queries, and their intervals. Above 0, the weights say what counts.

    Args:
        table: of `deletion_test`.
        what: was removed, "word" or "frame".
    """
    removed = table[table.share > 0].groupby(["order", "query"])[[*GAPS]].mean()
    gap = removed.loc["random"] - removed.loc["highest"]
    return {f"{what} deletion gap, {GAPS[name]}": mean_interval(gap[name]) for name in GAPS}


def deletion_curves(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the queries of a `deletion_test`, with their intervals.

    Returns:
        Rows of quantity ("margin", "hit"), order, removed (% of the tokens), value, low, high.
    """
    keys = ["quantity", "order", "removed"]
    long = table.assign(removed=100 * table.share).melt(keys[1:], [*GAPS], keys[0])
    groups = long.groupby(keys, sort=False)["value"]
    rows = [(*key, *mean_interval(values)) for key, values in groups]
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high"])


def partial_order(full, partial, masked) -> dict[str, np.ndarray]:
    """(N,) bool by step: whether scores (N,) fall with what a text says: full, partial, masked."""
    steps = {"full > partial": full > partial, "partial > masked": partial > masked}
    chain = np.logical_and(*steps.values())
    return steps | {"full > masked": full > masked, "full > partial > masked": chain}


def mean_cosine(vectors) -> np.ndarray:
    """(N,) mean cosine of all pairs among Q vectors (N, Q, D): 1 = all alike, 0 = at right angles
    on average."""
    vectors = np.asarray(vectors, float)
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    count = vectors.shape[1]
    return ((unit.sum(axis=1) ** 2).sum(axis=1) - count) / (count * (count - 1))


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


@torch.inference_mode()
def patch_attention(backbone, frames: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the image tower reads its feature from: the class token, or another readout.

    Args:
        backbone: of `tvrkit.models.backbone`.
        frames: (N, H, W, 3) uint8.

    Returns:
        The frames as the tower gets them, (N, S, S, 3) uint8, and (N, g, g) shares of attention:
        "last block", mean over heads, and "rollout" (Abnar and Zuidema, 2020); none where
        `backbone.lacks` it.
    """
    fitted = backbone.preprocessing.fit(torch.from_numpy(frames).permute(0, 3, 1, 2))
    shown = fitted.permute(0, 2, 3, 1).numpy()
    if backbone.lacks:
        return shown, {}
    attention = backbone.patch_attention(fitted.to(backbone.logit_scale.device))
    maps = {"last block": attention.last(), "rollout": attention.rollout()}
    return shown, {name: each.cpu().numpy() for name, each in maps.items()}
