"""Frames of a stranger's file, a video or a picture."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tvrkit.data.decoders import MAX_PIXELS, DecodeError, FrameSettings, read_frames
from tvrkit.data.extract import VIDEO_SUFFIXES

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows some that are programs
LARGEST = 1024  # pixels: sides of what is kept


def frames_of(path: Path, settings: FrameSettings) -> np.ndarray:
    """(F, H, W, 3) uint8 RGB, upright: of a video what `read_frames` gives; a picture, small.

    Raises:
        DecodeError: it is neither, or a picture of more than `MAX_PIXELS`.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return read_frames(path, settings)
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:  # Pillow itself reads thrice as many
                raise ValueError(f"expected at most {MAX_PIXELS:,} pixels, got {opened.size}")
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # a stranger's file: Pillow raises of many kinds
        raise DecodeError(f"{path}: no video by its name, no picture: {error}") from None
    picture.thumbnail((LARGEST, LARGEST))
    return np.array(picture)[None]
