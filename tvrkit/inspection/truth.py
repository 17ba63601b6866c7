"""Scored on the truth of shapes: kinds of pairs, swapped factors, contradicting words, pixels."""

import numpy as np
import pandas as pd

from tvrkit.data.manifest import Split
from tvrkit.inspection.attention import overlapping, word_spans
from tvrkit.inspection.negatives import LIKE, caption_likeness
from tvrkit.shapes.truth import Truth

# of 255: shapes' objects are coloured or white, everything else is nearly grey and dim
VIVID, PALE = 70, 190


def kinds_of_pairs(split: Split, truth: Truth | None) -> dict[str, np.ndarray]:
    """Kinds of text-video pairs, (N_t, N_v) bool each: every pair is of one.

    "match" is the caption's own video. Where truth is on record, "same meaning" is another one of
    which all is true that the caption says (a duplicate, or a neighbour that differs in what the
    caption leaves out), and "one factor apart" one that differs in one factor, which the caption
    names. Where nothing is known but the texts, "near-duplicate caption" is one with a likeness of
    `LIKE` or more: perhaps it fits, nobody has looked. "other" is the rest.
    """
    texts, videos, owner = split.captions, split.video_ids, split.video_of_caption
    match = owner[:, None] == np.arange(len(videos))
    if truth is None:
        likeness = caption_likeness(texts["caption"].tolist(), owner)
        kinds = {"match": match, "near-duplicate caption": ~match & (likeness >= LIKE)}
    else:
        fits = truth.relevance(texts["caption_id"], videos) == 1
        near = truth.differing_factors(texts["caption_id"], videos) == 1
        kinds = {"match": match, "same meaning": ~match & fits}
        kinds["one factor apart"] = ~match & ~fits & near
    return kinds | {"other": ~np.any([*kinds.values()], axis=0)}


def contradicting_words(truth: Truth, caption_id: str, caption: str, video_id: str) -> np.ndarray:
    """(W,) bool: the caption's words that name a factor in which its own video differs from
    `video_id`."""
    own, other = truth.factors.loc[truth.captions.video_id[caption_id]], truth.factors.loc[video_id]
    named = [span for span in truth.attribute_words(caption_id) if own[span[2]] != other[span[2]]]
    return overlapping(word_spans(caption), named)


def object_pixels(frames: np.ndarray) -> np.ndarray:
    """(N, H, W) bool: pixels of objects in informative shapes frames (N, H, W, 3) uint8, by their
    colour."""
    low, high = (bound(frames.astype(int), axis=3) for bound in (np.min, np.max))
    return (high - low > VIVID) | (low > PALE)


def partial_captions(truth: Truth, caption_ids: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the captions that say less of a video than another one does, and of those others."""
    whole = truth.captions.partial_of.loc[caption_ids].to_numpy()
    rows = np.flatnonzero(pd.notna(whole))
    return rows, pd.Index(caption_ids).get_indexer(whole[rows])
