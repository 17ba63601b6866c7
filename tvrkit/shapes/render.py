"""Pixels of the shapes data set.

What a rendering adds to a scene (exact position, tint, rotation, grain) is random, so that one
scene has many renderings.
"""

import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from tvrkit.shapes.scenes import COLOURS, PLACES, SIZES, Scene, step

SIDE = 64  # pixels; even, as yuv420p needs
SECOND_RADIUS = 8.5
REACH = 18.0  # pixels from the centre of the picture to the place of an object at its edge
GROWTH = {"grow": 1.8, "shrink": 0.45}  # scale at the end of the motion


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
        x2, y2 = _second_place(x, y, rng)
        late = np.arange(count) >= (count + 1) // 2
        seen = {"still": late | True, "appears": late, "vanishes": ~late}[scene.motion2]
        image[seen] = _drawn(image[seen], scene.shape2, scene.colour2, x2, y2, SECOND_RADIUS, rng)
    radius = SIZES[scene.size] * rng.uniform(0.9, 1.1) * scale
    image = _drawn(image, scene.shape, scene.colour, x, y, radius, rng)
    for index, kind in enumerate(distractors):
        if kind:
            image[index] = _distract(kind, rng)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def render_still(scene: Scene, seed: list[int]) -> np.ndarray:
    """uint8 (H, W, 3): the scene at rest, both objects where they are at the start."""
    motion2 = "still" if scene.shape2 else ""
    return render(replace(scene, motion="still", then="", motion2=motion2), [""], seed)[0]


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


def _drawn(image, shape: str, colour: str, x, y, radius, rng: np.random.Generator) -> np.ndarray:
    """`image` (F, H, W, 3) with an object blended in, tinted and turned a little; x, y, radius (F,)
    or one for all, in pixels; soft edges."""
    tinted, turn = np.array(COLOURS[colour]) + rng.uniform(-12, 12, 3), rng.uniform(-0.2, 0.2)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    x, y, radius = (np.reshape(value, (-1, 1, 1)) for value in (x, y, radius))
    across, down = (columns - x) / radius, (rows - y) / radius
    u = across * np.cos(turn) - down * np.sin(turn)
    v = across * np.sin(turn) + down * np.cos(turn)
    cover = np.clip(0.5 - _distance(shape, u, v) * radius, 0, 1)[..., None]
    return image + cover * (tinted - image)


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


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float: a dim, nearly grey texture, which never passes for an object's colour."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    waves = 2 * np.pi * rng.uniform(4, 6)
    u = columns * np.cos(turn) + rows * np.sin(turn)
    v = rows * np.cos(turn) - columns * np.sin(turn)
    stripes, across = np.sin(waves * u + phase[0]), np.sin(waves * v + phase[1])
    bend = 1.8 * np.sin(0.6 * waves * v)
    pattern = {
        "plain": np.zeros_like(u),
        "stripes": np.clip(4 * stripes, -1, 1),
        "checks": np.clip(8 * stripes * across, -1, 1),
        "dots": 2 * np.clip(8 * (stripes + across - 1.1), 0, 1) - 0.6,
        "gradient": 2.4 * (u - u.mean()),
        "waves": np.clip(3 * np.sin(0.8 * waves * u + phase[0] + bend), -1, 1),
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
        start, cell = np.array(cell), step(cell, motion)
        x, y = REACH * (start[:, None] + (np.array(cell) - start)[:, None] * time)
        if motion == "orbit":
            angle = 2 * np.pi * time
            x, y = x + 11 * np.sin(angle), y + 11 * (np.cos(angle) - 1) * (start[1] or 1)
        elif motion == "shake":
            x = x + 4.5 * np.sin(2.4 * frames)  # still seen when every second frame is dropped
        elif motion == "bounce":
            y = y - 13 * abs(np.sin(np.pi * len(frames) / 5 * time))
        end = scale * GROWTH.get(motion, 1.0)
        tracks.append((x, y, scale + (end - scale) * time))
        scale = end
    x, y, size = np.concatenate(tracks, axis=1)
    shift = SIDE / 2 + rng.uniform(-3, 3, 2)
    return x + shift[0], y + shift[1], size


def _second_place(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(x, y) of the second object, in one of the two cells of the grid farthest from the first
    one's path."""
    cells = SIDE / 2 + 21.0 * np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    gaps = np.hypot(cells[:, :1] - x, cells[:, 1:] - y).min(axis=1)
    return cells[rng.choice(np.argsort(gaps, kind="stable")[-2:])] + rng.uniform(-2, 2, 2)


def _distract(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float: a frame that tells nothing about the scene."""
    if kind == "blank":
        return np.full((SIDE, SIDE, 3), rng.uniform(0, 255))
    if kind == "noise":
        return np.kron(rng.uniform(0, 255, (SIDE // 4, SIDE // 4, 3)), np.ones((4, 4, 1)))
    folds = np.sin(np.linspace(0, rng.uniform(20, 40), SIDE) + rng.uniform(0, 6))
    curtain = rng.uniform(20, 120, 3) + 18 * folds[:, None]  # before the camera
    return np.tile(curtain, (SIDE, 1, 1))
