"""Makes `import torchvision` (hence open_clip) work where its wheel and torch are of different
builds."""

from importlib.util import find_spec
from pathlib import Path

import torch

OPERATORS = ("nms", "qnms")


def declare_missing_operators() -> None:
    """Declare torchvision's box operators where its compiled library cannot be loaded.

    Package indexes may pair a CPU torch with a torchvision wheel built for CUDA. The wheel's
    library then fails to load, which torchvision forgives, but on import it registers shape
    functions for `nms` and `qnms`, which do not exist without the library: "operator
    torchvision::nms does not exist". Declaring their signatures is enough, as nothing here detects
    boxes. Where the library loads, or the operators are declared already, nothing is changed.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue  # the other build: declared below
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )


declare_missing_operators()

from torchvision.transforms import InterpolationMode, v2  # noqa: E402, F401
