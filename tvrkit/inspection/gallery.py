"""What a picture of retrieved videos shows: frames, a caption, and the words that do not fit."""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from tvrkit.data.manifest import Manifest, Split
from tvrkit.evaluation.evaluate import Evaluation
from tvrkit.inspection.attention import frames_seen
from tvrkit.inspection.truth import contradicting_words
from tvrkit.settings import DataConfig
from tvrkit.shapes.truth import Truth


class Retrieved(NamedTuple):
    """One video in the answer to a query.

    Attributes:
        rank: its place in the answer, from 1.
        score: of the query and the video.
        right: whether it is the query's own video.
        frames: (F, H, W, 3) uint8, as the model sees them.
        caption: the video's own first caption, which says the most; the query for its own video.
        highlight: bool per word of the caption, True where the words name what is different in the
            query's own video; None where no truth is known.
    """

    rank: int
    score: float
    right: bool
    frames: np.ndarray
    caption: str
    highlight: np.ndarray | None


class Gallery:
    """The videos of one split as pictures of answers show them.

    Args:
        manifest: the prepared data set.
        data: settings of the evaluation: how many frames are seen, and which.
        split: the queries and their videos.
        truth: of shapes, where it is on record.
    """

    def __init__(
        self, manifest: Manifest, data: DataConfig, split: Split, truth: Truth | None = None
    ):
        self.manifest, self.data, self.split, self.truth = manifest, data, split, truth
        self._first = split.captions.drop_duplicates("video_id").set_index("video_id")

    def retrieved(self, result: Evaluation, query: int, column: int) -> Retrieved:
        """The video of a column in the answer to a caption.

        Args:
            result: the evaluation of the split.
            query: row of the caption.
            column: of the video.
        """
        scores, own = result.similarity[query], int(result.video_of_caption[query])
        video_id, right = result.video_ids[column], column == own
        rank = result.ranks["t2v"][query] if right else rankdata(-scores, "ordinal")[column]
        first, highlight = self._first.loc[video_id], None
        caption = self.split.captions["caption"][query] if right else first["caption"]
        if self.truth is not None and not right:
            names = first["caption_id"], caption, result.video_ids[own]
            highlight = contradicting_words(self.truth, *names)
        frames = frames_seen(self.manifest, self.data, video_id)[1]
        return Retrieved(int(rank), float(scores[column]), right, frames, caption, highlight)

    def answer(self, result: Evaluation, query: int, count: int = 5) -> list[Retrieved]:
        """The `count` best videos for a caption, and its own video where it is not among them."""
        best = np.argsort(-result.similarity[query], kind="stable")[:count].tolist()
        own = int(result.video_of_caption[query])
        columns = best if own in best else [*best, own]
        return [self.retrieved(result, query, column) for column in columns]


def worst_queries(result: Evaluation, count: int) -> list[int]:
    """Rows of the captions whose own video comes last, the worst first, one a video."""
    order = np.argsort(-result.ranks["t2v"], kind="stable")
    first = np.unique(result.video_of_caption[order], return_index=True)[1]
    return order[np.sort(first)][:count].tolist()
