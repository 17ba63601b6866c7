"""Scenes of the shapes data set and their pixels.

A scene is its meaning: ten named factors. What a rendering adds (exact position, tint, rotation,
grain) is random, so that one scene has many renderings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import av
import numpy as np

SIDE = 64  # pixels; even, as yuv420p needs
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
SECOND_RADIUS = 8.5
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*STEPS, "orbit", "still", "shake", "bounce", "grow", "shrink")
SECOND_MOTIONS = ("still", "appears", "vanishes")
BACKGROUNDS = ("plain", "stripes", "checks", "dots", "gradient", "waves")
DISTRACTORS = ("occluded", "blank", "noise")
REACH = 18.0  # pixels from the centre of the picture to the place of an object at its edge


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
            moved = _step(cell, motion)
            if (motion in STEPS and moved == cell) or (motion == "bounce" and cell[1] < 0):
                return False
            cell = moved
        twins = (self.shape, self.colour) == (self.shape2, self.colour2)
        both_rest = (self.motion, self.then, self.motion2) == ("still", "", "still")
        two_events = bool(self.then) and self.motion2 in ("appears", "vanishes")
        return self.motion != self.then and not (twins or both_rest or two_events)


FACTORS = tuple(field.name for field in fields(Scene))
VALUES = {
    "shape": ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon"),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "motion": MOTIONS,
    "background": BACKGROUNDS,
    "then": MOTIONS,
    "motion2": SECOND_MOTIONS,
}
VALUES |= {"shape2": VALUES["shape"], "colour2": VALUES["colour"]}


def differing(first: Scene, second: Scene) -> list[str]:
    """Names of the factors in which two scenes differ; two motions in the other order are one,
    "order"."""
    names = [name for name in FACTORS if vars(first)[name] != vars(second)[name]]
    if {"motion", "then"} <= set(names) and (first.motion, first.then) == (
        second.then,
        second.motion,
    ):
        return [name for name in names if name not in ("motion", "then")] + ["order"]
    return names


def neighbours(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Valid scenes that differ in one factor each: in the order of events first, then in random
    ones."""
    found = [replace(scene, motion=scene.then, then=scene.motion)] if scene.then else []
    for factor in rng.permutation([name for name in FACTORS if vars(scene)[name]]):
        others = [replace(scene, **{factor: value}) for value in VALUES[factor]]
        others = [other for other in others if other.valid() and other != scene]
        if others:
            found.append(others[rng.integers(len(others))])
    return [other for other in found if other.valid()]


def _step(cell: tuple[int, int], motion: str) -> tuple[int, int]:
    """The cell of the 3 x 3 grid after a motion; a step goes on to the edge of the picture."""
    across, down = STEPS.get(motion, (0, 0))
    return across or cell[0], down or cell[1]


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of radius 1, negative inside, y downwards."""
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius - 0.92
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.84
    if shape == "triangle":
        return np.maximum(y - 0.65, 0.866 * abs(x) - 0.5 * y - 0.5)
    if shape == "star":
        angle = abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        tip, notch = np.array([1.15, 0.0]), 0.47 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = (notch - tip) / np.linalg.norm(notch - tip)
        return (radius * np.cos(angle) - tip[0]) * edge[1] - radius * np.sin(angle) * edge[0]
    if shape == "cross":
        bar = np.maximum(abs(x) - 1.0, abs(y) - 0.3)
        return np.minimum(bar, np.maximum(abs(x) - 0.3, abs(y) - 1.0))
    if shape == "heart":
        diamond = (abs(x) + abs(y - 0.1)) / np.sqrt(2) - 0.57
        return np.minimum(diamond, np.hypot(abs(x) - 0.4, y + 0.3) - 0.57)
    if shape == "ring":
        return abs(radius - 0.75) - 0.24
    return np.maximum(radius - 1.0, 0.85 - np.hypot(x - 0.5, y + 0.15))  # moon


def _draw(image, shape, colour, x, y, radius, turn):
    """Blend an object into `image` (F, H, W, 3) in place; x, y, radius (F,) in pixels; soft
    edges."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    across = (columns - x[:, None, None]) / radius[:, None, None]
    down = (rows - y[:, None, None]) / radius[:, None, None]
    turned = (
        across * np.cos(turn) - down * np.sin(turn),
        across * np.sin(turn) + down * np.cos(turn),
    )
    distance = _distance(shape, *turned) * radius[:, None, None]
    image += np.clip(0.5 - distance, 0, 1)[..., None] * (colour - image)


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float: a dim, nearly grey texture, so that it never passes for an object's
    colour."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    turn, phase, waves = (
        rng.uniform(0, np.pi),
        rng.uniform(0, 2 * np.pi, 2),
        2 * np.pi * rng.uniform(4, 6),
    )
    u = columns * np.cos(turn) + rows * np.sin(turn)
    v = rows * np.cos(turn) - columns * np.sin(turn)
    stripes, across = np.sin(waves * u + phase[0]), np.sin(waves * v + phase[1])
    pattern = {
        "plain": np.zeros_like(u),
        "stripes": np.clip(4 * stripes, -1, 1),
        "checks": np.clip(8 * stripes * across, -1, 1),
        "dots": 2 * np.clip(8 * (stripes + across - 1.1), 0, 1) - 0.6,
        "gradient": 2.4 * (u - u.mean()),
        "waves": np.clip(
            3 * np.sin(0.8 * waves * u + phase[0] + 1.8 * np.sin(0.6 * waves * v)), -1, 1
        ),
    }[name]
    return rng.uniform(78, 100) + rng.uniform(-8, 8, 3) + rng.uniform(20, 26) * pattern[..., None]


def _path(
    scene: Scene, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y in pixels and scale of the first object in `count` frames, each (count,)."""
    legs = [scene.motion, scene.then] if scene.then else [scene.motion]
    cell, scale, tracks = PLACES[scene.place], 1.0, []
    for motion, frames in zip(legs, np.array_split(np.arange(count), len(legs)), strict=True):
        time = np.linspace(0, 1, len(frames))
        start, cell = np.array(cell), _step(cell, motion)
        x, y = REACH * (start[:, None] + (np.array(cell) - start)[:, None] * time)
        if motion == "orbit":
            x, y = (
                x + 11 * np.sin(2 * np.pi * time),
                y + 11 * (np.cos(2 * np.pi * time) - 1) * (start[1] or 1),
            )
        elif motion == "shake":
            x = x + 4.5 * np.sin(2.4 * frames)  # still seen when every second frame is dropped
        elif motion == "bounce":
            y = y - 13 * abs(np.sin(np.pi * len(frames) / 5 * time))
        end = scale * {"grow": 1.8, "shrink": 0.45}.get(motion, 1.0)
        tracks.append((x, y, scale + (end - scale) * time))
        scale = end
    x, y, size = (np.concatenate(part) for part in zip(*tracks, strict=True))
    shift = SIDE / 2 + rng.uniform(-3, 3, 2)
    return x + shift[0], y + shift[1], size


def _second_place(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(x, y) of the second object: one of the two cells of the grid farthest from the first one's
    path."""
    cells = SIDE / 2 + 21.0 * np.array(
        [(across, down) for across in (-1, 0, 1) for down in (-1, 0, 1)]
    )
    gaps = np.hypot(cells[:, :1] - x, cells[:, 1:] - y).min(axis=1)
    return cells[rng.choice(np.argsort(gaps, kind="stable")[-2:])] + rng.uniform(-2, 2, 2)


def _distract(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float: a frame that tells nothing about the scene."""
    if kind == "blank":
        return np.full((SIDE, SIDE, 3), rng.uniform(0, 255))
    if kind == "noise":
        return np.kron(rng.uniform(0, 255, (SIDE // 4, SIDE // 4, 3)), np.ones((4, 4, 1)))
    folds = np.sin(np.linspace(0, rng.uniform(20, 40), SIDE) + rng.uniform(0, 6))
    return np.tile(
        rng.uniform(20, 120, 3) + 18 * folds[:, None], (SIDE, 1, 1)
    )  # a curtain before the camera


def render(scene: Scene, distractors: list[str], seed: list[int]) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: what is seen.
        distractors: for each frame the kind of distractor it is, or "".
        seed: of everything that the scene leaves open.

    Returns:
        uint8 (F, H, W, 3), F = len(distractors).
    """
    rng = np.random.default_rng(seed)
    count = len(distractors)
    image = np.repeat(_background(scene.background, rng)[None], count, axis=0)
    x, y, scale = _path(scene, count, rng)
    if scene.shape2:
        place, colour = _second_place(x, y, rng), _tinted(scene.colour2, rng)
        late = np.arange(count) >= (count + 1) // 2
        seen = {"still": np.ones(count, bool), "appears": late, "vanishes": ~late}[scene.motion2]
        part, ones = image[seen], np.ones(seen.sum())
        _draw(
            part,
            scene.shape2,
            colour,
            place[0] * ones,
            place[1] * ones,
            SECOND_RADIUS * ones,
            _turn(rng),
        )
        image[seen] = part
    radius = SIZES[scene.size] * rng.uniform(0.9, 1.1) * scale
    _draw(image, scene.shape, _tinted(scene.colour, rng), x, y, radius, _turn(rng))
    for index, kind in enumerate(distractors):
        if kind:
            image[index] = _distract(kind, rng)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def render_still(scene: Scene, seed: list[int]) -> np.ndarray:
    """uint8 (H, W, 3): the scene at rest, both objects where they are at the start."""
    motion2 = "still" if scene.shape2 else ""
    return render(replace(scene, motion="still", then="", motion2=motion2), [""], seed)[0]


def _tinted(colour: str, rng: np.random.Generator) -> np.ndarray:
    return np.array(COLOURS[colour]) + rng.uniform(-12, 12, 3)


def _turn(rng: np.random.Generator) -> float:
    return rng.uniform(-0.2, 0.2)


def encode(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write an H.264 .mp4, whole or not at all. Same frames, same bytes: one thread, no time stamp.

    Args:
        frames: uint8 (F, H, W, 3), H and W even.
        path: of the file.
        fps: frames per second.
    """
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"threads": "1", "preset": "veryfast", "crf": "16", "bf": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(part, path)
