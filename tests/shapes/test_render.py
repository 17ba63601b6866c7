"""Every factor of a scene is seen in its pixels."""

from dataclasses import replace

import numpy as np
import pytest

from tvrkit.data.decoders import FrameSettings, read_frames
from tvrkit.shapes.render import REACH, SIDE, encode, render, render_still
from tvrkit.shapes.scenes import BACKGROUNDS, COLOURS, MOTIONS, PLACES, VALUES, Scene

CALM = Scene("circle", "red", "small", "centre", "still", "plain")


def centre_of(frame: np.ndarray, colour: str) -> tuple[float, float, int]:
    """Column, row and number of the pixels that have a colour."""
    rows, columns = np.nonzero(np.abs(frame.astype(int) - COLOURS[colour]).max(axis=-1) < 45)
    return (columns.mean(), rows.mean(), len(rows)) if len(rows) else (np.nan, np.nan, 0)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", PLACES)
def test_colour_place_and_size_are_seen(colour, place):
    for number, background in enumerate(BACKGROUNDS):
        scene = replace(CALM, colour=colour, place=place, background=background)
        x, y, small = centre_of(render_still(scene, [number]), colour)
        across, down = PLACES[place]
        assert abs(x - SIDE / 2 - REACH * across) < 5
        assert abs(y - SIDE / 2 - REACH * down) < 5
        assert (
            centre_of(render_still(replace(scene, size="large"), [number]), colour)[2]
            > 2 * small
            > 80
        )


def test_every_shape_looks_different():
    faces = [
        render_still(replace(CALM, shape=shape, size="large"), [1]).astype(int)
        for shape in VALUES["shape"]
    ]
    gaps = [(np.abs(a - b).max(axis=-1) > 60).sum() for i, a in enumerate(faces) for b in faces[:i]]
    assert min(gaps) > 50  # pixels


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_is_seen_in_every_second_frame(motion):
    frames = render(replace(CALM, motion=motion), [""] * 16, [5])[::2]
    x, y, size = np.array([centre_of(frame, "red") for frame in frames]).T
    wide, high, grown = np.ptp(x), np.ptp(y), size[-1] / size[0]
    expected = {
        "left": x[-1] - x[0] < -14 and high < 2,
        "right": x[-1] - x[0] > 14 and high < 2,
        "up": y[-1] - y[0] < -14 and wide < 2,
        "down": y[-1] - y[0] > 14 and wide < 2,
        "orbit": wide > 14 and high > 14,
        "still": wide < 1 and high < 1 and abs(grown - 1) < 0.1,
        "shake": 4 < wide < 12 and high < 1 and (np.diff(np.sign(np.diff(x))) != 0).sum() >= 3,
        "bounce": high > 6 and wide < 1 and (np.diff(np.sign(np.diff(y))) != 0).sum() >= 3,
        "grow": wide < 2 and grown > 2,
        "shrink": wide < 2 and grown < 0.5,
    }
    assert [name for name, seen in expected.items() if seen] == [motion]


def test_second_event_and_second_object_come_in_time():
    turning = replace(
        CALM, motion="right", then="up", shape2="star", colour2="cyan", motion2="still"
    )
    frames = render(turning, [""] * 16, [2])
    x, y, _ = np.array([centre_of(frame, "red") for frame in frames]).T
    assert x[7] - x[0] > 14 > 2 > abs(y[7] - y[0])
    assert y[8] - y[15] > 14 > 2 > abs(x[15] - x[8])
    for motion2, halves in (("still", (1, 1)), ("appears", (0, 1)), ("vanishes", (1, 0))):
        frames = render(replace(turning, then="", motion2=motion2), [""] * 16, [2])
        seen = [centre_of(frame, "cyan")[2] > 20 for frame in frames]
        assert seen == [bool(halves[0])] * 8 + [bool(halves[1])] * 8


def test_encoding_is_deterministic_and_close(tmp_path):
    frames = render(replace(CALM, motion="orbit"), [""] * 12 + ["noise"] * 4, [7])
    for name in ("a", "b"):
        encode(frames, tmp_path / f"{name}.mp4", 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    decoded = read_frames(tmp_path / "a.mp4", FrameSettings(16))
    assert decoded.shape == (16, SIDE, SIDE, 3)
    assert np.abs(decoded[:12].astype(int) - frames[:12]).mean() < 5
