"""Scored on the truth of shapes: kinds of pairs, contradicting words, pixels of objects."""

from __future__ import annotations

import numpy as np

from tvrkit.inspection.attention import overlapping, word_spans
from tvrkit.inspection.negatives import with_rest
from tvrkit.shapes.scenes import Truth

# of 255: shapes' objects are coloured or white, everything else is nearly grey and dim
VIVID, PALE = 70, 190


def pair_kinds(truth: Truth, caption_ids, video_ids, video_of_caption) -> dict[str, np.ndarray]:
    """Kinds of text-video pairs by what is true of them, (N_t, N_v) bool each.

    "match" is the caption's own video; "same meaning" another one of which all is true that the
    caption says (a duplicate, or a neighbour that differs in what the caption leaves out); "one
    factor apart" one that differs in one factor, which the caption names; "other" the rest.
    """
    match = np.asarray(video_of_caption)[:, None] == np.arange(len(video_ids))[None, :]
    fits = truth.relevance(caption_ids, video_ids) == 1
    near = truth.differing_factors(caption_ids, video_ids) == 1
    return with_rest(
        {"match": match, "same meaning": ~match & fits, "one factor apart": ~match & ~fits & near}
    )


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
