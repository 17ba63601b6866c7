"""What the tiny backbone is pre-trained on: single frames, and captions without any motion."""

import numpy as np

from tvrkit.shapes.captions import mention, tell
from tvrkit.shapes.render import render_still
from tvrkit.shapes.scenes import PRESETS, random_scene

PRESET = PRESETS["quick"]
OMIT = 0.4  # more than a preset's: each word is learnt by itself
STILL, MOVING = (101, 102)  # random streams of stills and sampled captions, apart from the splits'
UNSEEN = ("motion", "then", "motion2")


def stills(count: int, seed: int) -> tuple[np.ndarray, list[list[str]]]:
    """Single frames with captions of what a single frame shows, to pre-train a backbone on.

    Args:
        count: frames N.
        seed: of scenes, pixels and captions.

    Returns:
        uint8 (N, H, W, 3), and per frame 1 to 3 English, then 1 to 3 Chinese captions without any
        motion.
    """
    images, captions = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, STILL, index])
        scene = random_scene(PRESET, rng)
        images.append(render_still(scene, [seed, STILL, index, 1]))
        texts = []
        for language in ("en", "zh"):
            for _ in range(rng.integers(1, 4)):
                seen = tuple(name for name in mention(scene, OMIT, rng) if name not in UNSEEN)
                texts.append(tell(scene, seen, language, PRESET.filler, rng)[0])
        captions.append(texts)
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
