"""Weights that a method starts from, whoever wrote the file: the kit, or an author's released
code."""

from pathlib import Path
from typing import Any, NamedTuple

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
    """

    path: Path
    sha256: str
    format: str
    method: str
    settings: dict[str, Any]

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
    return _open(path)[0]


def start(method: Method, path: Path) -> Origin:
    """Fill `method`, all of it, with the weights of a checkpoint file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what `describe` refuses, another backbone or tokenizer, missing keys, or other
            shapes.
    """
    origin, state = _open(path)
    if isinstance(state, official.Released):
        official.fill_released(method, state)
    else:
        checkpoints.start_from(method, path)
    return origin


def _open(path: Path) -> tuple[Origin, checkpoints.State | official.Released]:
    tensors, metadata = checkpoints.read_tensors(path)
    sha256 = metadata.get("sha256") or checkpoints.digest(tensors)
    if "method" in metadata:
        settings = checkpoints.told(metadata, "settings", path)
        return Origin(path, sha256, "tvrkit", metadata["method"], settings), tensors
    state = official.recognise(tensors)
    if state is None:
        expected = f"the kit's or released ones of {', '.join(official.OFFICIAL)}"
        got = ", ".join([*tensors][:3])
        raise ValueError(f"{path}: expected weights of a method, {expected}, got {got}")
    return Origin(path, sha256, "released", state.method, state.settings()), state
