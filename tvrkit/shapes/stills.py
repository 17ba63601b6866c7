"""What the tiny backbone is pre-trained on: single frames, and captions without any motion."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tvrkit.shapes.captions import WORDS, mention, tell
from tvrkit.shapes.render import render_still
from tvrkit.shapes.scenes import FACTORS, PRESETS, VALUES, Scene, random_scene

PRESET = PRESETS["quick"]
OMIT = 0.4  # more than a preset's: each word is learnt by itself
CAPTIONS = 3  # of each still in each language
# random streams of stills, sampled captions and swapped stills, apart from the splits'
STILL, MOVING, SWAPPED = 101, 102, 103
SEEN = tuple(name for name in FACTORS if name not in ("motion", "then", "motion2"))


class Stills(NamedTuple):
    """N single frames, told three times in each language, without any motion.

    Attributes:
        images: uint8 (N, H, W, 3).
        values: int64 (N, factors of `SEEN`), which value of the factor is seen; -1 = none.
        captions: language -> N times `CAPTIONS` texts.
        told: language -> bool (N, CAPTIONS, factors), whether the caption speaks of the factor.
    """

    images: np.ndarray
    values: np.ndarray
    captions: dict[str, list[list[str]]]
    told: dict[str, np.ndarray]


def stills(count: int, seed: int) -> Stills:
    """What a backbone is pre-trained on; `seed` is of scenes, pixels and captions."""
    images, values = [], []
    captions: dict[str, list[list[str]]] = {language: [] for language in WORDS}
    told: dict[str, list] = {language: [] for language in WORDS}
    for index in range(count):
        rng = np.random.default_rng([seed, STILL, index])
        scene = random_scene(PRESET, rng)
        images.append(render_still(scene, [seed, STILL, index, 1]))
        values.append(values_of(scene))
        for language in WORDS:
            said = [
                [name for name in mention(scene, OMIT, rng) if name in SEEN]
                for _ in range(CAPTIONS)
            ]
            captions[language].append(
                [tell(scene, tuple(names), language, PRESET.filler, rng)[0] for names in said]
            )
            told[language].append([[name in names for name in SEEN] for names in said])
    masks = {language: np.array(rows) for language, rows in told.items()}
    return Stills(np.stack(images), np.array(values), captions, masks)


def values_of(scene: Scene) -> list[int]:
    """Which value each factor of `SEEN` has, -1 where it has none."""
    return [VALUES[name].index(value) if (value := getattr(scene, name)) else -1 for name in SEEN]


def swapped_stills(
    count: int, factor: str, language: str, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Captions that say all there is to see, with a frame of which they are true and one in which
    `factor` has another value.

    Returns:
        uint8 (N, 2, H, W, 3), own frame first, and N captions; N is `count`.
    """
    images, captions, rng = [], [], np.random.default_rng([seed, SWAPPED])
    while len(captions) < count:
        scene = random_scene(PRESET, rng)
        others = [value for value in VALUES[factor] if value != getattr(scene, factor)]
        other = replace(scene, **{factor: others[rng.integers(len(others))]})
        if (other.shape, other.colour) == (other.shape2, other.colour2):
            continue  # two objects alike: which one is told of?
        pair = [
            render_still(shown, [seed, SWAPPED, len(captions), place])
            for place, shown in enumerate((scene, other))
        ]
        said = tuple(name for name in mention(scene, 0.0, rng) if name in SEEN)
        images.append(pair)
        captions.append(tell(scene, said, language, 0.0, rng)[0])
    return np.stack(images), captions


def sample_captions(count: int, seed: int) -> list[str]:
    """Captions of random moving scenes, English and Chinese in turn (what a tokenizer is made
    from)."""
    captions = []
    for index in range(count):
        rng = np.random.default_rng([seed, MOVING, index])
        scene = random_scene(PRESET, rng)
        mentioned = mention(scene, OMIT * (index % 4 > 1), rng)
        captions.append(tell(scene, mentioned, ("en", "zh")[index % 2], PRESET.filler, rng)[0])
    return captions
