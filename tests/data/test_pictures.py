"""A stranger's picture is read upright, small, or refused in a line."""

import numpy as np
import pytest
from PIL import Image

from tvrkit.data.decoders import DecodeError, FrameSettings
from tvrkit.data.pictures import frames_of

HOW = FrameSettings(8, 256)


def test_stills_are_read_upright_and_small(tmp_path):
    picture = Image.fromarray(np.full((2000, 3000, 3), (250, 10, 10), np.uint8))
    tag = Image.Exif()
    tag[274] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=tag)
    frames = frames_of(tmp_path / "a.jpg", HOW)
    assert (frames.shape, frames.dtype) == ((1, 1024, 683, 3), np.uint8)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(DecodeError, match="no picture"):
        frames_of(tmp_path / "b.png", HOW)
    with pytest.raises(DecodeError, match="no picture"):
        frames_of(tmp_path / "nowhere.png", HOW)
    for side, why in ((8_200, "expected at most 67,108,864"), (20_000, "exceeds limit")):
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        with pytest.raises(DecodeError, match=f"no picture: .*{why}"):
            frames_of(tmp_path / "bomb.png", HOW)


def test_a_file_named_as_a_video_is_read_as_one(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    (tmp_path / "still.png").rename(tmp_path / "still.mp4")
    with pytest.raises(DecodeError, match="no video"):
        frames_of(tmp_path / "still.mp4", HOW)
