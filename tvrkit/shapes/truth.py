"""What is true of the videos and captions of shapes: the measure of attention and of mining."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from tvrkit.shapes.scenes import FACTORS, Scene, differing

FOLDER = "truth"
_OF_EITHER = ("shape", "colour", "motion")  # what can be told of either object
# The factor of a video that a word is true of where the two objects have each other's role.
ROLES = {name: f"{name}2" for name in _OF_EITHER} | {f"{name}2": name for name in _OF_EITHER}
ROLES["background"] = "background"


class Truth:
    """What is true of the videos and captions of a prepared shapes data set.

    Attributes:
        factors: DataFrame, index video_id, one column per factor of `Scene`, "" where there is
            none.
        videos: DataFrame, index video_id: split, family, duplicate_of, informative, distractors.
        captions: DataFrame, index caption_id: video_id, language, mentioned, spans, partial_of.
    """

    def __init__(self, videos: pd.DataFrame, captions: pd.DataFrame):
        self.videos, self.captions = videos.set_index("video_id"), captions.set_index("caption_id")
        scenes = self.videos.pop("scene")
        self.factors = pd.DataFrame(list(scenes), self.videos.index)[list(FACTORS)]
        self._scenes = {name: Scene(**scene) for name, scene in scenes.items()}
        self._families = self.videos.groupby("family").groups

    @classmethod
    def open(cls, root: Path | str) -> Self:
        """Read `truth/` of the data set in `root`.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = Path(root) / FOLDER
        if not (folder / "captions.jsonl").exists():
            raise FileNotFoundError(
                f"{folder}: no truth; only shapes has it (tvrkit data prepare shapes)"
            )
        texts = ((folder / f"{name}.jsonl").read_text("utf-8") for name in ("videos", "captions"))
        return cls(*(pd.DataFrame(map(json.loads, text.splitlines())) for text in texts))

    @property
    def duplicates(self) -> dict[str, str]:
        """Video id -> id of the video that shows the same scene."""
        return self.videos.duplicate_of.dropna().to_dict()

    def informative(self, video_id: str) -> np.ndarray:
        """(F,) bool per stored frame, False on distractors."""
        return np.array(self.videos.informative[video_id], bool)

    def attribute_words(self, caption_id: str) -> list[tuple[int, int, str]]:
        """(start, end, factor) of every attribute word, in characters of the caption, end
        excluded."""
        return [tuple(span) for span in self.captions.spans[caption_id]]

    def swapped(self, video_id: str) -> dict[str, list[str]]:
        """Factor -> videos of the same family that differ from this one in exactly that factor.

        The same two motions in the other order are the one factor "order".
        """
        swapped: dict[str, list[str]] = {}
        for other in self._families[self.videos.family[video_id]]:
            names = differing(self._scenes[video_id], self._scenes[other])
            if len(names) == 1:
                swapped.setdefault(names[0], []).append(other)
        return swapped

    def differing_factors(self, caption_ids: Sequence[str], video_ids: Sequence[str]) -> np.ndarray:
        """(N_t, N_v) int: in how many factors each caption's own video differs from each video,
        said or not.

        The same two motions in the other order count once.
        """
        own, other = self._values(caption_ids, video_ids)
        count = np.sum([own[name] != other[name] for name in FACTORS], axis=0)
        exchanged = (own["motion"] == other["then"]) & (own["then"] == other["motion"])
        return count - (exchanged & (own["motion"] != other["motion"]))

    def relevance(self, caption_ids: Sequence[str], video_ids: Sequence[str]) -> np.ndarray:
        """(N_t, N_v) float64 in [0, 1]: the share of what a caption says that is true of a video.

        A motion told alone is true of a video that has it first or second. Where the words fit
        better with the two objects in each other's role, that counts (for what can be told of
        either, see `ROLES`).
        """
        own, other = self._values(caption_ids, video_ids)
        mentioned = self.captions.mentioned[list(caption_ids)]
        said = {name: np.array([[name in names] for names in mentioned]) for name in FACTORS}
        true = {name: own[name] == other[name] for name in FACTORS}
        true["motion"] |= (own["motion"] == other["then"]) & ~said["then"]
        straight = np.sum([said[name] & true[name] for name in FACTORS], axis=0)
        crossed = np.sum([said[a] & (own[a] == other[b]) for a, b in ROLES.items()], axis=0)
        return np.maximum(straight, crossed) / np.sum([*said.values()], axis=0)

    def _values(self, caption_ids: Sequence[str], video_ids: Sequence[str]) -> tuple[dict, dict]:
        """By factor, the values of the captions' videos (N_t, 1) and those of the videos (N_v,)."""
        owners = self.captions.video_id[list(caption_ids)]
        own, other = (self.factors.loc[list(ids)].to_numpy("U").T for ids in (owners, video_ids))
        columns = dict(zip(FACTORS, own[..., None], strict=True))
        return columns, dict(zip(FACTORS, other, strict=True))
