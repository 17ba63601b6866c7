"""shapes: procedural videos with known meaning, so that the whole kit runs on any machine and can be scored on truth.

Real .mp4 files, decoded and stored like any other video. The data set is a function of (preset, seed): `plan` fixes
every scene, rendering and caption before the first pixel is drawn.
"""

from __future__ import annotations

import numpy as np

from tvrkit.config import settings
from tvrkit.data.shapes_captions import mention, tell
from tvrkit.data.shapes_render import FACTORS, VALUES, Scene, render_still

SPLITS = ("train", "val", "test")
STILL, MOVING = (
    101,
    102,
)  # keep the random streams of stills and sampled captions apart from those of the splits


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
        families: share of videos in families whose members differ from the first in exactly one factor.
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
    families: float = 0.6
    family_size: int = 5
    duplicates: float = 0.04
    captions_en: int = 4
    captions_zh: int = 2
    partial: float = 0.75
    omit: float = 0.4
    filler: float = 0.4


PRESETS = {
    "smoke": Preset(48, 24, 40),
    "quick": Preset(2000, 200, 500),
    "full": Preset(10_000, 500, 1000),
    "easy": Preset(2000, 200, 500, second_object=0.0, distractors=0.0, families=0.2, omit=0.15, filler=0.2),
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


def stills(count: int, seed: int) -> tuple[np.ndarray, list[list[str]]]:
    """Single frames with captions of what a single frame shows, to pre-train a backbone on.

    Args:
        count: frames N.
        seed: of scenes, pixels and captions.

    Returns:
        uint8 (N, H, W, 3), and per frame 1 to 3 English, then 1 to 3 Chinese captions without any motion.
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
                mentioned = tuple(factor for factor in mention(scene, preset.omit, rng) if factor in seen)
                told.append(tell(scene, mentioned, language, preset.filler, rng).text)
        captions.append(told)
    return np.stack(images), captions


def sample_captions(count: int, seed: int) -> list[str]:
    """Captions of random moving scenes, English and Chinese in turn (what a tokenizer is made from)."""
    preset, captions = PRESETS["quick"], []
    for index in range(count):
        rng = np.random.default_rng([seed, MOVING, index])
        scene = random_scene(preset, rng)
        mentioned = mention(scene, preset.omit * (index % 4 > 1), rng)
        captions.append(tell(scene, mentioned, ("en", "zh")[index % 2], preset.filler, rng).text)
    return captions
