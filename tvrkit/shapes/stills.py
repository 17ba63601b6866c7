"""What the tiny backbone is pre-trained on: single frames, captions of them, and captions with
motion, which it reads and never sees."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tvrkit.shapes.captions import WORDS, mention, tell
from tvrkit.shapes.render import render_still
from tvrkit.shapes.scenes import FACTORS, PRESETS, VALUES, random_scene

PRESET = PRESETS["quick"]
OMIT = 0.4  # more than a preset's: each word is learnt by itself
CAPTIONS = 3  # of each still in each language
# random streams of stills, sampled captions and swapped stills, apart from the splits'
STILL, MOVING, SWAPPED = 101, 102, 103
SEEN = tuple(name for name in FACTORS if name not in ("motion", "then", "motion2"))


class Stills(NamedTuple):
    """N single frames, and what is said of them and of the scenes that they start.

    Attributes:
        images: uint8 (N, H, W, 3).
        values: int64 (N, `FACTORS`), which value each factor of the scene has; -1 = none.
        captions: language -> N times `CAPTIONS` texts without any motion, and one with it.
        named: language -> bool (N, CAPTIONS + 1, factors), whether the text speaks of the factor.
    """

    images: np.ndarray
    values: np.ndarray
    captions: dict[str, list[list[str]]]
    named: dict[str, np.ndarray]


def stills(count: int, seed: int) -> Stills:
    """What a backbone is pre-trained on; `seed` is of scenes, pixels and captions."""
    images, values = [], []
    captions: dict[str, list[list[str]]] = {language: [] for language in WORDS}
    named: dict[str, list] = {language: [] for language in WORDS}
    for index in range(count):
        rng = np.random.default_rng([seed, STILL, index])
        scene = random_scene(PRESET, rng)
        images.append(render_still(scene, [seed, STILL, index, 1]))
        values.append([VALUES[name].index(v) if v else -1 for name, v in vars(scene).items()])
        for language in WORDS:
            mentioned = [mention(scene, OMIT, rng) for _ in range(CAPTIONS + 1)]
            mentioned[:CAPTIONS] = [seen(names) for names in mentioned[:CAPTIONS]]
            texts = [tell(scene, names, language, PRESET.filler, rng)[0] for names in mentioned]
            captions[language].append(texts)
            named[language].append([[name in names for name in FACTORS] for names in mentioned])
    masks = {language: np.array(rows) for language, rows in named.items()}
    return Stills(np.stack(images), np.array(values), captions, masks)


def seen(mentioned: tuple[str, ...]) -> tuple[str, ...]:
    """The factors among them that a single frame shows."""
    return tuple(name for name in mentioned if name in SEEN)


def swapped_stills(
    count: int, factor: str, language: str, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Captions that say all there is to see, with a frame of which they are true and one in which
    `factor` has another value.

    Returns:
        uint8 (N, 2, H, W, 3), own frame first, and N captions; N is `count`.
    """
    images: list = []
    captions: list[str] = []
    rng = np.random.default_rng([seed, SWAPPED])
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
        images.append(pair)
        captions.append(tell(scene, seen(mention(scene, 0.0, rng)), language, 0.0, rng)[0])
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
