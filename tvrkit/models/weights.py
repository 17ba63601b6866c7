"""Weights that a method starts from, whoever wrote the file: the kit, or an author's released
code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tvrkit import files
from tvrkit.models import checkpoints, official
from tvrkit.models.method import Method


class Origin(NamedTuple):
    """What a checkpoint file says of itself.

    Attributes:
        path: the file.
        sha256: `checkpoints.digest` of the weights.
        format: "tvrkit", or "released" for an author's file.
        method: a name that `method_class` takes.
        settings: of the method, as far as the file shows them.
        preprocessing: of frames, under open_clip's names; empty where it is not known.
        metadata: of the file.
        state: its weights.
    """

    path: Path
    sha256: str
    format: str
    method: str
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    metadata: dict[str, str]
    state: checkpoints.State | official.Released

    @property
    def card(self) -> dict[str, str]:
        """What a run card says of it."""
        about = {"file": self.path.name, "sha256": self.sha256}
        return about | {"format": self.format, "method": self.method}


def describe(path: Path) -> Origin:
    """Recognise a checkpoint file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file of plain tensors, or neither the kit's nor one of `official.OFFICIAL`.
    """
    tensors, metadata = checkpoints.read_tensors(path)
    sha256 = metadata.get("sha256") or checkpoints.digest(tensors)
    if "method" in metadata:
        settings = files.json_object(metadata.get("settings", "{}"), f"{path}: settings")
        shown = metadata["method"], settings, checkpoints.facts(path)
        return Origin(path, sha256, "tvrkit", *shown, metadata, tensors)
    state = official.recognise(tensors)
    if state is None:
        expected = f"the kit's or released ones of {', '.join(official.OFFICIAL)}"
        got = f"{', '.join([*tensors][:3])}: a backbone's alone are for backbone.pretrained"
        raise ValueError(f"{path}: expected weights of a method, {expected}, got {got}")
    shown = state.method, state.settings(), official.PREPROCESSING
    return Origin(path, sha256, "released", *shown, {}, state)


def start(build: Callable[[dict[str, Any]], Method], path: Path) -> tuple[Method, Origin]:
    """A method, all of it filled with the weights of a checkpoint file.

    Args:
        build: the method to be filled, from `Origin.preprocessing`.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what `describe` refuses, another backbone or tokenizer, missing keys, or other
            shapes.
    """
    origin = describe(path)
    method = build(origin.preprocessing)
    if isinstance(origin.state, official.Released):
        official.fill_released(method, origin.state)
    else:  # another method may hold all parts of this one, as HMMC's pre-training does
        checkpoints.check(origin.metadata, checkpoints.backbone_identity(method.backbone), path)
        checkpoints.fill(method, origin.state, str(path))
    return method, origin
