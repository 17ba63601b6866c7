"""shapes: procedural videos with known meaning, so that the whole kit runs anywhere and is scored
on truth.

Real .mp4 files, decoded and stored like any other video. The data set is a function of preset and
seed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tvrkit.data import extract as frames
from tvrkit.data import manifest
from tvrkit.data.decoders import FrameSettings
from tvrkit.settings import choose, settings
from tvrkit.shapes.captions import mention, tell
from tvrkit.shapes.render import (
    DISTRACTORS,
    FACTORS,
    VALUES,
    Scene,
    differing,
    encode,
    neighbours,
    render,
    render_still,
)

SPLITS = ("train", "val", "test")
CAPTION_COLUMNS = ["caption_id", "video_id", "caption", "language", "split"]
TRUTH_COLUMNS = ["caption_id", "video_id", "language", "mentioned", "spans", "partial_of"]
PRETRAINING_OMIT = (
    0.4  # the backbone's captions leave out more than a preset's: each word is learnt by itself
)
ROLES = {
    "shape": "shape2",
    "colour": "colour2",
    "motion": "motion2",
}  # what can be told of either object
ROLES |= {second: first for first, second in ROLES.items()} | {"background": "background"}
STILL, MOVING = (101, 102)  # random streams of stills and sampled captions, apart from the splits'


@settings
class Preset:
    """How much there is and how hard it is.

    Attributes:
        train, val, test: videos per split.
        frames: per video, all of them stored.
        fps: frames per second.
        second_object: share of scenes with two objects.
        second_event: share of scenes in which the first object changes its motion.
        distractors: share of frames that show nothing of the scene.
        families: share of videos in families whose members differ from the first in exactly one
            factor.
        family_size: videos per family.
        duplicates: share of videos that show the scene of another one of the split again.
        captions_en, captions_zh: captions per video; the first of each language says everything.
        partial: share of the others that leave something out.
        omit: probability that such a caption leaves out an attribute.
        filler: probability of words that say nothing.
    """

    train: int
    val: int
    test: int
    frames: int = 16
    fps: int = 8
    second_object: float = 0.4
    second_event: float = 0.45
    distractors: float = 0.25
    families: float = 0.2
    family_size: int = 5
    duplicates: float = 0.04
    captions_en: int = 4
    captions_zh: int = 2
    partial: float = 0.4
    omit: float = 0.25
    filler: float = 0.4


PRESETS = {
    "smoke": Preset(48, 24, 40),
    "sweep": Preset(640, 24, 300),
    "quick": Preset(2000, 200, 500),
    "full": Preset(10_000, 500, 1000),
    "easy": Preset(
        2000, 200, 500, second_object=0.0, distractors=0.0, families=0.2, omit=0.15, filler=0.2
    ),
    "hard": Preset(
        2000, 200, 500, second_object=0.6, second_event=0.7, distractors=0.4, families=0.9, omit=0.5
    ),
}


def random_scene(preset: Preset, rng: np.random.Generator) -> Scene:
    """A valid scene with every value of every factor equally likely, as far as validity lets it."""
    while True:
        drawn = {factor: values[rng.integers(len(values))] for factor, values in VALUES.items()}
        if rng.random() >= preset.second_event:
            drawn["then"] = ""
        if rng.random() >= preset.second_object:
            drawn |= {"shape2": "", "colour2": "", "motion2": ""}
        scene = Scene(**drawn)
        if scene.valid():
            return scene


@dataclass(frozen=True)
class Video:
    """One video of the plan.

    Attributes:
        family: id of the video whose scene the family's other scenes vary; its own where it is
            alone.
        duplicate_of: id of the video with the same scene and another rendering, or None.
        distractors: per frame the kind of distractor, or "".
        seed: of everything random in pixels and words, with a stream number appended.
    """

    video_id: str
    split: str
    scene: Scene
    family: str
    duplicate_of: str | None
    distractors: list[str]
    seed: list[int]


def plan(preset: Preset, seed: int) -> list[Video]:
    """Every video of a data set, split by split. No scene is in two splits; none is there twice
    unmarked."""
    used: set[Scene] = set()
    videos = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        members = _members(getattr(preset, split), preset, used, rng)
        names = [f"{split}{place:05d}" for place in rng.permutation(len(members))]
        for index, (scene, family, original) in enumerate(members):
            distractors = [""] * preset.frames
            for frame in rng.choice(
                preset.frames, round(preset.distractors * preset.frames), replace=False
            ):
                distractors[frame] = DISTRACTORS[rng.integers(len(DISTRACTORS))]
            duplicate_of = None if original is None else names[original]
            stream = [seed, number, index]
            videos.append(
                Video(names[index], split, scene, names[family], duplicate_of, distractors, stream)
            )
    return sorted(videos, key=lambda video: (SPLITS.index(video.split), video.video_id))


def _members(
    count: int, preset: Preset, used: set[Scene], rng
) -> list[tuple[Scene, int, int | None]]:
    """(scene, row of its family's first scene, row of the scene it repeats or None); `used`
    grows."""
    copies, size = round(preset.duplicates * count), preset.family_size
    start_family = preset.families / (
        size - preset.families * (size - 1)
    )  # `families` is a share of videos
    members: list[tuple[Scene, int, int | None]] = []
    while len(members) < count - copies:
        scene = random_scene(preset, rng)
        if scene in used:
            continue
        scenes = [scene]
        if rng.random() < start_family:
            scenes += [other for other in neighbours(scene, rng) if other not in used][: size - 1]
        scenes = scenes[: count - copies - len(members)]
        members += [(member, len(members), None) for member in scenes]
        used |= set(scenes)
    for original in rng.choice(len(members), copies, replace=False):
        members.append((*members[original][:2], int(original)))
    return members


def _captions(video: Video, preset: Preset) -> list[dict]:
    """Rows of both `captions.jsonl` together; the first caption of each language says
    everything."""
    rng = np.random.default_rng([*video.seed, 0])
    rows = []
    for language, count in (("en", preset.captions_en), ("zh", preset.captions_zh)):
        full = mention(video.scene, 0.0, rng)
        for index in range(count):
            omit = preset.omit if index and rng.random() < preset.partial else 0.0
            mentioned = mention(video.scene, omit, rng)
            text, spans = tell(video.scene, mentioned, language, preset.filler, rng)
            rows.append(
                {
                    "caption_id": f"{video.video_id}-{language}{index}",
                    "video_id": video.video_id,
                    "caption": text,
                    "language": language,
                    "split": video.split,
                    "mentioned": list(mentioned),
                    "spans": spans,
                    "partial_of": None if mentioned == full else f"{video.video_id}-{language}0",
                }
            )
    return rows


def prepare(root: Path | str, preset: str = "quick", seed: int = 0, workers: int = 2) -> None:
    """Make the data set, or what is missing of it, in `root`; a finished one is left as it is.

    Args:
        root: folder of the prepared data set; gets `videos/`, `truth/`, and what every prepared
            data set has.
        preset: a key of `PRESETS`.
        seed: of everything. The same seed gives the same bytes of truth and captions, and the same
            frames.
        workers: processes that render, encode and decode.

    Raises:
        ValueError: unknown preset, or `root` holds shapes of another preset or seed.
        RuntimeError: a worker was killed, or a video could not be decoded again.
    """
    root, chosen = Path(root), PRESETS[choose("preset", preset, PRESETS)]
    made_from = {"preset": preset, "seed": seed, **asdict(chosen)}
    mark, card = root / "truth" / "made_from.json", root / "card.json"
    found = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else None
    if (mark.exists() or card.exists()) and found != made_from:
        raise ValueError(
            f"{root}: expected shapes of {made_from}, found {found}: choose another folder"
        )
    if card.exists():
        return
    for folder in ("truth", "videos"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    _write_lines(mark, [made_from])
    videos = plan(chosen, seed)
    captions = pd.DataFrame([row for video in videos for row in _captions(video, chosen)])
    _write_lines(root / "truth" / "videos.jsonl", map(_truth_row, videos))
    _write_lines(root / "truth" / "captions.jsonl", captions[TRUTH_COLUMNS].to_dict("records"))
    files = {video.video_id: root / "videos" / f"{video.video_id}.mp4" for video in videos}
    _film_all([(video, files[video.video_id], chosen.fps) for video in videos], workers)
    settings = FrameSettings(chosen.frames)
    rows = frames.extract(files, root / "frames.lmdb", settings, workers=workers)
    broken = rows[(rows.status != "ok") | (rows.frames != chosen.frames)]
    if len(broken):
        raise RuntimeError(
            f"{len(broken)} of {len(rows)} videos not decoded whole: {dict(broken.iloc[0])}"
        )
    splits = {video.video_id: video.split for video in videos}
    rows = rows.assign(split=rows.video_id.map(splits))
    manifest.write(
        root, captions[CAPTION_COLUMNS], rows, {"protocol": "shapes", "made_from": made_from}
    )


def _truth_row(video: Video) -> dict:
    return vars(video) | {
        "scene": asdict(video.scene),
        "informative": [not kind for kind in video.distractors],
    }


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    os.replace(part, path)


def _film_all(jobs: list[tuple[Video, Path, int]], workers: int) -> None:
    """Render and encode in processes. Stopped at any moment it leaves whole files only: the next
    call goes on."""
    missing = [job for job in jobs if not job[1].exists()]
    context = get_context("spawn")  # forking a notebook with its threads could hang
    shares = (missing[start::workers] for start in range(min(workers, len(missing))))
    crew = [context.Process(target=_film, args=(share,), daemon=True) for share in shares]
    try:
        for process in crew:
            process.start()
        with tqdm(
            total=len(jobs), desc="rendering", unit="video", initial=len(jobs) - len(missing)
        ) as bar:
            while running := [process for process in crew if process.is_alive()]:
                running[0].join(0.5)
                bar.update(sum(path.exists() for _, path, _ in jobs) - bar.n)
    finally:
        for process in crew:
            if process.is_alive():
                process.terminate()
    if any(process.exitcode for process in crew):
        codes = [process.exitcode for process in crew]
        raise RuntimeError(
            f"rendering stopped (exit codes {codes}, expected 0): run again to go on"
        )


def _film(share: list[tuple[Video, Path, int]]) -> None:
    """A worker: leaves Ctrl-C to the parent and ends with it, so that none writes beside the next
    call's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    for video, path, fps in share:
        encode(render(video.scene, video.distractors, [*video.seed, 1]), path, fps)


class Truth:
    """What is true of the videos and captions of a prepared shapes data set.

    Attributes:
        factors: DataFrame, index video_id, one column per factor of `Scene`, "" where there is
            none.
        videos: DataFrame, index video_id: split, family, duplicate_of, informative, distractors.
        captions: DataFrame, index caption_id: video_id, language, mentioned, spans, partial_of.
    """

    def __init__(self, videos: pd.DataFrame, captions: pd.DataFrame):
        self.videos = videos.set_index("video_id")
        self.captions = captions.set_index("caption_id")
        self.factors = pd.DataFrame(list(self.videos.pop("scene")), index=self.videos.index)[
            list(FACTORS)
        ]
        codes = np.unique(self.factors.to_numpy(str), return_inverse=True)[1].reshape(
            self.factors.shape
        )
        self._codes = pd.DataFrame(codes, index=self.factors.index, columns=self.factors.columns)
        said = [
            [factor in mentioned for factor in FACTORS] for mentioned in self.captions.mentioned
        ]
        self._said = pd.DataFrame(said, index=self.captions.index, columns=list(FACTORS))

    @classmethod
    def open(cls, root: Path | str) -> Truth:
        """Read `truth/` of the data set in `root`.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = Path(root) / "truth"
        if not (folder / "captions.jsonl").exists():
            raise FileNotFoundError(
                f"{folder}: no truth; only shapes has it (tvrkit data prepare shapes)"
            )
        texts = [
            (folder / f"{name}.jsonl").read_text(encoding="utf-8")
            for name in ("videos", "captions")
        ]
        return cls(
            *(pd.DataFrame([json.loads(line) for line in text.splitlines()]) for text in texts)
        )

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

    def tags(self, captions: pd.DataFrame) -> list[str]:
        """Tags of each caption's video: the attribute words of its first caption, which says
        everything.

        Args:
            captions: rows of one language with `caption_id`, `video_id` and `caption`, in the order
                of the files.
        """
        first = captions.drop_duplicates("video_id").set_index("video_id")
        words = [
            [text[start:end] for start, end, _ in self.attribute_words(caption_id)]
            for caption_id, text in zip(first["caption_id"], first["caption"], strict=True)
        ]
        return captions["video_id"].map(pd.Series(map(" ".join, words), first.index)).tolist()

    def swapped(self, video_id: str) -> dict[str, list[str]]:
        """Factor -> videos of the same family that differ from this one in exactly that factor.

        The same two motions in the other order are the one factor "order".
        """
        found: dict[str, list[str]] = {}
        family = self.videos.index[self.videos.family == self.videos.family[video_id]]
        scene = Scene(**self.factors.loc[video_id])
        for other in family:
            names = differing(scene, Scene(**self.factors.loc[other]))
            if len(names) == 1:
                found.setdefault(names[0], []).append(other)
        return found

    def differing_factors(self, caption_ids: Sequence[str], video_ids: Sequence[str]) -> np.ndarray:
        """(N_t, N_v) int: in how many factors each caption's own video differs from each video,
        said or not.

        The same two motions in the other order count once.
        """
        own = self._codes.loc[self.captions.video_id[list(caption_ids)]]
        other = self._codes.loc[list(video_ids)]
        count = np.zeros((len(own), len(other)), int)
        for factor in FACTORS:
            count += _unequal(own[factor], other[factor])
        reordered = ~_unequal(own.motion, other.then) & ~_unequal(own.then, other.motion)
        return count - (reordered & _unequal(own.motion, other.motion))

    def relevance(self, caption_ids: Sequence[str], video_ids: Sequence[str]) -> np.ndarray:
        """(N_t, N_v) float64 in [0, 1]: the share of what a caption says that is true of a video.

        A motion told alone is true of a video that has it first or second. Where the words fit
        better with the two objects in each other's role, that counts (for what can be told of
        either, see `ROLES`).
        """
        said = self._said.loc[list(caption_ids)]
        own = self._codes.loc[self.captions.video_id[list(caption_ids)]]
        other = self._codes.loc[list(video_ids)]
        straight, crossed = (np.zeros((len(own), len(other))) for _ in range(2))
        for factor in FACTORS:
            true = ~_unequal(own[factor], other[factor])
            if factor == "motion":
                true |= ~_unequal(own.motion, other.then) & ~said.then.to_numpy()[:, None]
            straight += true & said[factor].to_numpy()[:, None]
            if factor in ROLES:
                crossed += (
                    ~_unequal(own[factor], other[ROLES[factor]]) & said[factor].to_numpy()[:, None]
                )
        return np.maximum(straight, crossed) / said.to_numpy().sum(axis=1, keepdims=True)


def _unequal(texts: pd.Series, videos: pd.Series) -> np.ndarray:
    return texts.to_numpy()[:, None] != videos.to_numpy()[None, :]


def stills(count: int, seed: int) -> tuple[np.ndarray, list[list[str]]]:
    """Single frames with captions of what a single frame shows, to pre-train a backbone on.

    Args:
        count: frames N.
        seed: of scenes, pixels and captions.

    Returns:
        uint8 (N, H, W, 3), and per frame 1 to 3 English, then 1 to 3 Chinese captions without any
        motion.
    """
    preset, images, captions = PRESETS["quick"], [], []
    for index in range(count):
        rng = np.random.default_rng([seed, STILL, index])
        scene = random_scene(preset, rng)
        images.append(render_still(scene, [seed, STILL, index, 1]))
        seen = [factor for factor in FACTORS if factor not in ("motion", "then", "motion2")]
        told = []
        for language in ("en", "zh"):
            for _ in range(rng.integers(1, 4)):
                mentioned = tuple(
                    factor for factor in mention(scene, PRETRAINING_OMIT, rng) if factor in seen
                )
                told.append(tell(scene, mentioned, language, preset.filler, rng)[0])
        captions.append(told)
    return np.stack(images), captions


def sample_captions(count: int, seed: int) -> list[str]:
    """Captions of random moving scenes, English and Chinese in turn (what a tokenizer is made
    from)."""
    preset, captions = PRESETS["quick"], []
    for index in range(count):
        rng = np.random.default_rng([seed, MOVING, index])
        scene = random_scene(preset, rng)
        mentioned = mention(scene, PRETRAINING_OMIT * (index % 4 > 1), rng)
        captions.append(tell(scene, mentioned, ("en", "zh")[index % 2], preset.filler, rng)[0])
    return captions
