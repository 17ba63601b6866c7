"""Scenes of the shapes data set: what can be shown, how hard, and which scenes a split has.

A scene is its meaning: ten named factors. A family of scenes differs in exactly one of them.
"""

import itertools
from dataclasses import dataclass, fields, replace

import numpy as np

from tvrkit.settings import settings

SPLITS = ("train", "val", "test")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
COLOURS = {
    "red": (225, 35, 35),
    "orange": (250, 140, 25),
    "yellow": (245, 230, 60),
    "green": (40, 170, 60),
    "cyan": (70, 220, 225),
    "blue": (45, 85, 240),
    "purple": (150, 50, 190),
    "white": (250, 250, 250),
}
SIZES = {"small": 6.5, "large": 12.5}  # radius in pixels
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
CROSSINGS = (("left", "right"), ("right", "left"), ("top", "down"), ("bottom", "up"))
MOTIONS = (*STEPS, "orbit", "still", "shake", "bounce", "grow", "shrink")
SECOND_MOTIONS = ("still", "appears", "vanishes")
BACKGROUNDS = ("plain", "stripes", "checks", "dots", "gradient", "waves")
DISTRACTORS = ("occluded", "blank", "noise")


@dataclass(frozen=True)
class Scene:
    """What a video means. The first object acts; the second, if any, stands by, comes or goes.

    Attributes:
        place: where the first object starts.
        motion: of the first object, from the start.
        then: its motion in the second half, "" where the first goes on.
        shape2, colour2, motion2: the second object, "" where there is none.
    """

    shape: str
    colour: str
    size: str
    place: str
    motion: str
    background: str
    then: str = ""
    shape2: str = ""
    colour2: str = ""
    motion2: str = ""

    def valid(self) -> bool:
        """Whether it can be filmed (no step out of the picture) and told in one way only."""
        cell = PLACES[self.place]
        for motion in filter(None, (self.motion, self.then)):
            moved = step(cell, motion)
            if (motion in STEPS and moved == cell) or (motion == "bounce" and cell[1] < 0):
                return False
            cell = moved
        twins = (self.shape, self.colour) == (self.shape2, self.colour2)
        both_rest = (self.motion, self.then, self.motion2) == ("still", "", "still")
        two_events = bool(self.then) and self.motion2 in ("appears", "vanishes")
        return self.motion != self.then and not (twins or both_rest or two_events)


def step(cell: tuple[int, int], motion: str) -> tuple[int, int]:
    """The cell of the 3 x 3 grid after a motion; a step goes on to the edge of the picture."""
    across, down = STEPS.get(motion, (0, 0))
    return across or cell[0], down or cell[1]


FACTORS = tuple(field.name for field in fields(Scene))
VALUES = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "place": tuple(PLACES)}
VALUES |= {"motion": MOTIONS, "background": BACKGROUNDS, "then": MOTIONS}
VALUES |= {"motion2": SECOND_MOTIONS, "shape2": SHAPES, "colour2": tuple(COLOURS)}


def backwards(scene: Scene) -> Scene | None:
    """The scene whose video is this one played backwards; None where there is none.

    There is one where the first object crosses the picture and nothing else happens. Both videos
    hold the same frames: only their order tells them apart.
    """
    start, places = PLACES[scene.place], {cell: place for place, cell in PLACES.items()}
    end, back = step(start, scene.motion), OPPOSITE.get(scene.motion, "")
    alone = back and not scene.then and scene.motion2 in ("", "still")
    if not alone or end not in places or step(end, back) != start:
        return None
    return replace(scene, place=places[end], motion=back)


def differing(first: Scene, second: Scene) -> list[str]:
    """Names of the factors in which two scenes differ.

    The same two motions in the other order are one factor, "order"; a scene and `backwards` of it
    differ in one, "direction".
    """
    if second == backwards(first):
        return ["direction"]
    names = [name for name in FACTORS if vars(first)[name] != vars(second)[name]]
    if "motion" in names and (first.motion, first.then) == (second.then, second.motion):
        return [name for name in names if name not in ("motion", "then")] + ["order"]
    return names


def neighbours(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Valid scenes that differ in one factor each: order and direction first, then in random
    order."""
    near = [replace(scene, motion=scene.then, then=scene.motion)] if scene.then else []
    near += [other for other in [backwards(scene)] if other]
    for factor in rng.permutation([name for name in FACTORS if vars(scene)[name]]):
        others = [replace(scene, **{factor: value}) for value in VALUES[factor]]
        others = [other for other in others if other.valid() and other != scene]
        if others:
            near.append(others[rng.integers(len(others))])
    return [other for other in near if other.valid()]


def motions_of(scene: Scene) -> list[Scene]:
    """Every valid scene with its look: all but the motions of the first object."""
    motions = itertools.product(MOTIONS, ("", *MOTIONS))
    others = [replace(scene, motion=motion, then=then) for motion, then in motions]
    return [other for other in others if other.valid()]


@settings
class Preset:
    """How much there is and how hard it is.

    Attributes:
        train, val, test: videos per split. Without training videos it tests what "quick" has
            trained, and shares no scene with it.
        frames: per video, all of them stored.
        fps: frames per second.
        second_object: share of scenes with two objects.
        second_event: share of scenes in which the first object changes its motion.
        distractors: share of frames that show nothing of the scene.
        alike: share of training scenes that share a look (all but the motions) with others, so
            that only motion tells them apart.
        look_size: how many of them share one look.
        families: share of training videos in families whose members differ from the first in
            exactly one factor.
        test_families: the same of validation and test videos.
        test_crossing: share of validation and test scenes in which the first object crosses the
            picture and nothing else happens (see `backwards`).
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
    alike: float = 0.0
    look_size: int = 30
    families: float = 0.2
    test_families: float = 0.2
    test_crossing: float = 0.0
    family_size: int = 5
    duplicates: float = 0.04
    captions_en: int = 4
    captions_zh: int = 2
    partial: float = 0.4
    omit: float = 0.25
    filler: float = 0.4


_QUICK = Preset(
    2000,
    200,
    1000,
    second_event=0.6,
    distractors=0.125,
    alike=0.8,
    test_families=0.8,
    test_crossing=0.25,
)
PRESETS = {
    "smoke": Preset(48, 24, 40),
    "sweep": Preset(640, 24, 300),
    "quick": _QUICK,
    "full": replace(_QUICK, train=10_000, val=500),
    "easy": replace(_QUICK, second_object=0.0, distractors=0.0, omit=0.15, filler=0.2),
    "hard": replace(
        _QUICK, second_object=0.6, distractors=0.4, families=0.9, test_families=0.9, omit=0.5
    ),
    # families alone, with a member for every factor of their first scene
    "contrast": replace(
        _QUICK,
        train=0,
        val=0,
        test=1500,
        second_object=0.85,
        second_event=0.93,
        test_families=1.0,
        test_crossing=0.36,
        family_size=12,
        duplicates=0.0,
        captions_en=2,
        captions_zh=0,
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
    """Every video of a data set, split by split.

    No scene is in two splits; none is in one twice without being marked as a duplicate.
    """
    used = {video.scene for video in plan(_QUICK, seed)} if not preset.train else set()
    videos = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        members = _members(split, preset, used, rng)
        names = [f"{split}{place:05d}" for place in rng.permutation(len(members))]
        for index, (scene, family, original) in enumerate(members):
            copied = None if original is None else names[original]
            about = names[index], split, scene, names[family], copied
            videos.append(Video(*about, _distractors(preset, rng), [seed, number, index]))
    return sorted(videos, key=lambda video: (SPLITS.index(video.split), video.video_id))


def _distractors(preset: Preset, rng: np.random.Generator) -> list[str]:
    kinds = [""] * preset.frames
    hidden = rng.choice(preset.frames, round(preset.distractors * preset.frames), replace=False)
    for frame in hidden:
        kinds[frame] = DISTRACTORS[rng.integers(len(DISTRACTORS))]
    return kinds


def _members(
    split: str, preset: Preset, used: set[Scene], rng: np.random.Generator
) -> list[tuple[Scene, int, int | None]]:
    """(scene, row of its family's first scene, row of the scene it repeats or None); `used`
    grows."""
    training, count, size = split == "train", getattr(preset, split), preset.family_size
    families = preset.families if training else preset.test_families
    copies, crossing = round(preset.duplicates * count), 0.0 if training else preset.test_crossing
    # `families` is a share of videos: this is the share of the scenes drawn that start one
    start_family = families / (size - families * (size - 1))
    alike = preset.alike if training else 0.0
    looks = [random_scene(preset, rng) for _ in range(round(alike * count / preset.look_size))]
    members: list[tuple[Scene, int, int | None]] = []
    while len(members) < count - copies:
        scene = random_scene(preset, rng)
        if looks and rng.random() < alike:
            others = motions_of(looks[rng.integers(len(looks))])
            left = [other for other in others if other not in used]
            scene = left[rng.integers(len(left))] if left else scene
        if crossing and rng.random() < crossing:
            place, motion = CROSSINGS[rng.integers(len(CROSSINGS))]
            still = "still" if scene.shape2 else ""
            scene = replace(scene, place=place, motion=motion, then="", motion2=still)
        if scene in used:
            continue
        family = [scene]
        if rng.random() < start_family:
            family += [other for other in neighbours(scene, rng) if other not in used][: size - 1]
        family = family[: count - copies - len(members)]
        members += [(member, len(members), None) for member in family]
        used |= set(family)
    for original in rng.choice(len(members), copies, replace=False):
        members.append((*members[original][:2], int(original)))
    return members
