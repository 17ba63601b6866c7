"""The kit's own checkpoints: safetensors, with the names of method, backbone and tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tvrkit.files import sha256
from tvrkit.models import method_name
from tvrkit.models.method import Method
from tvrkit.settings import Config

State = Mapping[str, Tensor]


def save(method: Method, path: Path, config: Config | None = None) -> str:
    """Write all weights and buffers as safetensors, whole or not at all.

    The metadata hold the names of method, backbone and tokenizer, and the method's settings.

    Args:
        path: the file; its folder exists.
        config: the recipe it was trained with, for its name.

    Returns:
        SHA-256 of the file, in hex.
    """
    path = Path(path)
    metadata = _identity(method) | {"settings": json.dumps(dataclasses.asdict(method.settings))}
    if config is not None:
        metadata["recipe"] = config.recipe
    state = {key: tensor.cpu().contiguous() for key, tensor in method.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return sha256(path)


def load(method: Method, path: Path) -> Method:
    """Fill `method` with weights that `save` wrote for the same method and backbone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another method, backbone or tokenizer, missing or further keys, other shapes, or
            a broken file.
    """
    unused = fill(method, _read(path, _identity(method)), str(path))
    if unused:
        raise ValueError(f"{path}: expected no further keys, got {', '.join(unused[:5])}")
    return method


def start_from(method: Method, path: Path) -> list[str]:
    """Fill `method` with weights of another one that holds all of its parts (HMMC from its
    pre-training).

    Returns:
        Keys of the file that the method has no use for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another backbone or tokenizer, missing keys, other shapes, or a broken file.
    """
    identity = _identity(method)
    del identity["method"]
    return fill(method, _read(path, identity), str(path))


def fill(method: Method, state: State, source: str) -> list[str]:
    """Copy what `method` needs, all of it, and return the keys it does not need.

    Args:
        state: weights under the kit's names.
        source: where they come from, for messages.

    Raises:
        ValueError: missing keys or other shapes; nothing is copied then.
    """
    needed = method.state_dict()
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"{source}: missing keys ({len(missing)}): {', '.join(missing[:5])}")
    for key, tensor in needed.items():
        expected, shape = tuple(tensor.shape), tuple(state[key].shape)
        if shape != expected:
            raise ValueError(f"{source}: {key}: expected shape {expected}, got {shape}")
    method.load_state_dict({key: state[key] for key in needed})
    return [key for key in state if key not in needed]


def _identity(method: Method) -> dict[str, str]:
    """Weights of another backbone have other shapes, most often; those of another tokenizer just
    read noise."""
    backbone = method.backbone
    names = {"backbone": backbone.name, "tokenizer": backbone.tokenizer_id}
    return {"method": method_name(method), **names}


def _read(path: Path, identity: Mapping[str, str]) -> State:
    """The weights of a file whose metadata have this `identity`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file: {error}") from None
    for key, value in identity.items():
        if metadata.get(key) != value:
            raise ValueError(f"{path}: expected weights of {key} {value}, got {metadata.get(key)}")
    return state
