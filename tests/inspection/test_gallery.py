"""Galleries: which videos are shown, with which rank, caption and marked words."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests import fakes
from tvrkit.inspection.gallery import Gallery, worst_queries
from tvrkit.settings import DataConfig

VIDEOS = ["a", "b", "c", "d"]
CAPTIONS = pd.DataFrame(
    {
        "caption_id": ["a0", "a1", "b0", "c0", "d0"],
        "video_id": ["a", "a", "b", "c", "d"],
        "caption": ["a red ball", "a ball", "a blue ball", "a red cube", "grass"],
    }
)
OWNER = np.array([0, 0, 1, 2, 3])
SCORES = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],
        [0.1, 0.4, 0.3, 0.2],  # own video last
        [0.2, 0.1, 0.3, 0.4],  # own video last
        [0.2, 0.3, 0.3, 0.1],  # tied with the own video
        [0.1, 0.2, 0.3, 0.4],
    ]
)
RESULT = SimpleNamespace(
    similarity=SCORES,
    video_ids=np.array(VIDEOS),
    video_of_caption=OWNER,
    ranks={"t2v": np.array([1, 4, 4, 2, 1])},
)


class FakeFrames:
    """Six stored frames a video, each filled with the video's number."""

    def count(self, video_id):
        return 6

    def read(self, video_id, indices):
        return np.full((len(indices), 4, 4, 3), VIDEOS.index(video_id), np.uint8)


@pytest.fixture
def gallery():
    manifest, split = (
        SimpleNamespace(frames=FakeFrames()),
        fakes.split("test", CAPTIONS, VIDEOS, OWNER),
    )
    return Gallery(manifest, DataConfig(prepared="fake", max_frames=3), split)


def test_an_answer_has_the_best_videos_in_order_with_their_own_captions(gallery):
    answer = gallery.answer(RESULT, 0, count=2)
    assert [(shown.rank, shown.score, shown.right) for shown in answer] == [
        (1, 0.9, True),
        (2, 0.3, False),
    ]
    assert [shown.caption for shown in answer] == ["a red ball", "grass"]
    assert all(shown.frames.shape == (3, 4, 4, 3) for shown in answer)
    assert [int(shown.frames.max()) for shown in answer] == [0, 3]
    assert answer[1].highlight is None  # no truth


def test_the_own_video_is_shown_where_it_is_not_among_the_best(gallery):
    *best, own = gallery.answer(RESULT, 1, count=2)
    assert [shown.caption for shown in best] == ["a blue ball", "a red cube"]
    assert (own.rank, own.right, own.caption) == (4, True, "a ball")
    tied = gallery.answer(RESULT, 3, count=1)
    assert [(shown.rank, shown.right) for shown in tied] == [(1, False), (2, True)]


def test_the_worst_queries_are_one_a_video():
    assert worst_queries(RESULT, 5) == [1, 2, 3, 4]
    assert worst_queries(RESULT, 2) == [1, 2]
