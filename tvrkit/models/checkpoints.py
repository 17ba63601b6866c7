"""The kit's own checkpoints: safetensors, with the names of method, backbone and tokenizer."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tvrkit import files
from tvrkit.data import records
from tvrkit.data.preprocessing import Preprocessing
from tvrkit.models import method_name
from tvrkit.models.backbone import Backbone
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
        `digest` of the weights.
    """
    metadata = _identity(method) | {"settings": json.dumps(dataclasses.asdict(method.settings))}
    if config is not None:
        metadata["recipe"] = config.recipe
    state = {key: tensor.cpu().contiguous() for key, tensor in method.state_dict().items()}
    metadata["sha256"] = digest(state)
    with files.replacing(Path(path)) as temporary:
        save_file(state, temporary, metadata)
    return metadata["sha256"]


def facts(path: Path) -> dict[str, Any]:
    """The preprocessing that a file of `save` was made with, under open_clip's names; empty before
    version 0.2."""
    with safe_open(path, "pt") as file:
        said, where = (file.metadata() or {}).get("preprocessing", "{}"), f"{path}: preprocessing"
    saved = files.json_object(said, where)
    if saved:
        saved |= {"resize_mode": saved.get("resize")}
        Preprocessing.from_facts(1, saved, where)
    return saved


def digest(state: State) -> str:
    """SHA-256, in hex, of the name, type, shape and bytes of each tensor, by name: equal weights
    have equal ones, whatever file they are in."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def load(method: Method, path: Path) -> Method:
    """Fill `method` with weights that `save` wrote for the same method and backbone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another method, backbone or tokenizer, missing or further keys, other shapes,
            weights that are no finite real numbers, or a broken file.
    """
    state, metadata = read_tensors(path)
    check(metadata, _identity(method), path)
    unused = fill(method, state, str(path))
    files.expect(not unused, path, "no further keys", ", ".join(unused[:5]))
    return method


def fill(method: Method, state: State, source: str) -> list[str]:
    """Copy what `method` needs, all of it, and return the keys it does not need.

    Args:
        state: weights under the kit's names.
        source: where they come from, for messages.

    Raises:
        ValueError: missing keys, other shapes, or weights that are no finite real numbers; nothing
            is copied then.
    """
    needed = method.state_dict()
    missing = [key for key in needed if key not in state]
    got = f"{len(missing)} missing keys: {', '.join(missing[:5])}"
    files.expect(not missing, source, "all weights of the method", got)
    for key, own in needed.items():
        where, given = f"{source}: {key}", state[key]
        shape, same_kind = tuple(own.shape), own.is_floating_point() == given.is_floating_point()
        files.expect(given.shape == shape, where, f"shape {shape}", tuple(given.shape))
        files.expect(same_kind, where, own.dtype, given.dtype)
        files.expect(given.float().isfinite().all(), where, "finite weights", "NaN or infinity")
    method.load_state_dict({key: state[key] for key in needed})
    return [key for key in state if key not in needed]


def _identity(method: Method) -> dict[str, str]:
    """Weights of another backbone have other shapes, most often; those of another tokenizer just
    read noise."""
    return {"method": method_name(method), **backbone_identity(method.backbone)}


def backbone_identity(backbone: Backbone) -> dict[str, str]:
    """What metadata say of a backbone."""
    names = {"backbone": backbone.name, "tokenizer": backbone.tokenizer_id}
    return names | {"preprocessing": json.dumps(dataclasses.asdict(backbone.preprocessing))}


def check(metadata: Mapping[str, str], identity: Mapping[str, str], path: Path) -> None:
    """ValueError where a file's metadata say another thing than `identity`."""
    for key, value in identity.items():
        unsaid = key == "preprocessing" and key not in metadata  # before version 0.2
        got = f"{metadata.get(key)!s:.300}: name theirs in the recipe"
        files.expect(unsaid or metadata.get(key) == value, path, f"weights of {key} {value}", got)


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and a safetensors file's metadata. No code of the file runs, and
    nothing in it unpacks to more than the file's size.

    Args:
        path: a .safetensors file, or what torch.save made of a state dict, alone or as "model" or
            "state_dict" of a dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything but plain tensors of real numbers, a damaged file, or one whose
            weights are not those that it was saved with.
    """
    path, metadata = Path(path), dict[str, str]()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        else:
            _check_pickles(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file raises
        expected = "expected a file of plain tensors"
        raise ValueError(f"{path}: {expected}, got {files.reason(error)}") from None
    for wrapper in ("model", "state_dict"):  # beside an optimiser's, often
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    files.expect(isinstance(state, Mapping), path, "a state dict", type(state).__name__)
    for key, tensor in state.items():
        if not isinstance(key, str) or not _is_plain(tensor):
            raise ValueError(f"{path}: {files.shown(key)}: expected a dense tensor of real numbers")
    if "sha256" in metadata and metadata["sha256"] != digest(state):
        raise ValueError(f"{path}: its weights are not those it was saved with: a damaged file")
    return state, metadata


def _check_pickles(path: Path) -> None:
    """Refuse what torch.load would choke on: compressed bombs, and tuples without end."""
    if zipfile.is_zipfile(path):
        files.check_zip(path)
        with zipfile.ZipFile(path) as archive:
            for name in filter(lambda name: name.endswith(".pkl"), archive.namelist()):
                records.check_tuples(archive.read(name))
    else:  # of torch before 1.6: three about the file, the weights, their places
        with path.open("rb") as file:
            for _ in range(5):
                records.check_tuples(file)


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with a number of its own for each place: views of one number can have
    any shape."""
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized:
        return False
    own = value.layout == torch.strided and value.device.type == "cpu"
    return own and value.untyped_storage().nbytes() >= value.nbytes
