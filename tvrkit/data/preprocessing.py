"""How stored frames become what an image tower was trained on: it follows the weights."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from tvrkit.data.manifest import Split
from tvrkit.settings import parse, settings
from tvrkit.torchvision_compat import InterpolationMode, v2

LOOKED_AT = 8  # videos whose frames tell how a store was made
# open_clip's names of the attributes
NAMES = {"mean": "mean", "std": "std", "interpolation": "interpolation", "resize": "resize_mode"}


@settings
class Preprocessing:
    """What open_clip's inference transform does to a picture, less the scaling to float.

    Attributes:
        size: S, height and width of a frame.
        mean, std: of RGB values in [0, 1].
        interpolation: of the resize, with antialias: "bicubic" or "bilinear".
        resize: "shortest", short side to S and then the centre, or "squash", both sides to S.

    Raises:
        ValueError: no three numbers, or another interpolation or resize.
    """

    size: PositiveInt
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"

    @classmethod
    def from_facts(cls, size: int, facts: Mapping[str, Any], where: str = "preprocessing") -> Self:
        """From open_clip's facts of a tag or a model, or from a file `where` they stand."""
        own = {key: facts[name] for key, name in NAMES.items() if name in facts}
        own |= {key: tuple(value) for key, value in own.items() if isinstance(value, list)}
        return parse(cls, {"size": size, **own}, where)

    def fit(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) uint8 -> (F, 3, S, S) uint8."""
        target, how = [self.size, self.size], InterpolationMode(self.interpolation)
        sides = target[:1] if self.resize == "shortest" else target
        frames = v2.functional.resize(frames, sides, how, antialias=True)
        return v2.functional.center_crop(frames, target)

    def card(self, split: Split) -> dict[str, Any]:
        """What a run card says: the attributes, and `notes` of what does not suit the store."""
        shapes = [split.frames.read(name, [0]).shape[1:3] for name in split.video_ids[:LOOKED_AT]]
        smallest, notes = min(min(shape) for shape in shapes), []
        if smallest < self.size:
            notes.append(f"stored frames of {smallest} pixels are enlarged to {self.size}")
        if not split.frames.settings and all(height == width for height, width in shapes):
            cut = f"this backbone's weights saw pictures resized by {self.resize!r}"
            notes.append(f"the store, of other making, has square frames, cut or squashed: {cut}")
        return asdict(self) | {"notes": notes}
