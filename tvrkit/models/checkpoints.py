"""Checkpoints: the kit's own (safetensors, with the backbone's exact name), and those of the
released codes."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import open_clip
import torch
from open_clip import CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.model import set_model_preprocess_cfg
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tvrkit.files import sha256
from tvrkit.models import METHODS
from tvrkit.models.backbone import Backbone
from tvrkit.models.method import Method
from tvrkit.models.temporal import HEAD_WIDTH, TemporalTransformer
from tvrkit.settings import Config, choose

State = Mapping[str, Tensor]
log = logging.getLogger(__name__)

# Released models whose architecture has a name in open_clip; others are called CONVERTED.
KNOWN_BACKBONES = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
CONVERTED = "converted"
CLIP_TEXT = (
    "token_embedding",
    "positional_embedding",
    "transformer",
    "ln_final",
    "text_projection",
)
RELEASED_LOGIT_SCALE = math.log(100.0)  # HMMC's constant, which its checkpoints do not hold
HMMC_TEMPORAL_HEADS = 8  # 512 / 64, whatever the width
MIN_BERT_HEADS = 2  # of the smallest BERT; heads of all published sizes are 64 wide


# --- The kit's own
#  ------------------------------------------------------------------------------------------


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(
            {k: t.cpu().contiguous() for k, t in method.state_dict().items()}, temporary, metadata
        )
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
    state, metadata = _read_own(path)
    _same(_identity(method), metadata, path)
    unused = _fill(method, state, str(path))
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
    state, metadata = _read_own(path)
    _same(_start(method), metadata, path)
    return _fill(method, state, str(path))


def _identity(method: Method) -> dict[str, str]:
    name = next(name for name, cls in METHODS.items() if type(method) is cls)
    return {"method": name, **_start(method)}


def _start(method: Method) -> dict[str, str]:
    """Weights of another backbone have other shapes, most often; those of another tokenizer just
    read noise."""
    return {"backbone": method.backbone.name, "tokenizer": method.backbone.tokenizer_id}


def _same(expected: Mapping[str, str], metadata: Mapping[str, str], path: Path) -> None:
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise ValueError(f"{path}: expected weights of {key} {value}, got {metadata.get(key)}")


def _read_own(path: Path) -> tuple[State, dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file: {error}") from None


def _fill(method: Method, state: State, source: str) -> list[str]:
    """Copy what `method` needs, all of it, and return the keys it does not need."""
    needed = method.state_dict()
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"{source}: missing keys ({len(missing)}): {', '.join(missing[:5])}")
    for key, tensor in needed.items():
        if tensor.shape != state[key].shape:
            shapes = f"{tuple(tensor.shape)}, got {tuple(state[key].shape)}"
            raise ValueError(f"{source}: {key}: expected shape {shapes}")
    method.load_state_dict({key: state[key] for key in needed})
    return [key for key in state if key not in needed]


# --- Released ones
#  ------------------------------------------------------------------------------------------


def load_official(
    method: str,
    state_dict_or_path: State | str | Path | Sequence[Path],
    *,
    tokenizer=None,
    **config,
) -> Method:
    """A method with the weights of a released GLSCL or HMMC checkpoint (English or Chinese), in
    evaluation mode.

    Sizes are read off the tensors' shapes. Keys without use (GLSCL saves 23.1 M such weights) are
    logged.

    Args:
        method: "glscl" or "hmmc".
        state_dict_or_path: the state dict, or a file (.safetensors; others by torch.load with
            weights_only), or several files that make one.
        tokenizer: open_clip tokenizer; default CLIP's. A Chinese checkpoint does not hold its own:
            without one, captions can't be tokenised, and features of tokens are what there is.
        config: what shapes do not show: any of the method's settings (fidelity is "released" by
            default), and `temporal_heads` or (Chinese) `text_heads`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown method or keyword, a missing key, a tower that is no vision transformer,
            or a file that can't be read.
    """
    choose("released method", method, OFFICIAL)
    state = _read(state_dict_or_path)
    rename, read_settings, head_default = OFFICIAL[method]
    temporal_heads, text_heads = config.pop("temporal_heads", None), config.pop("text_heads", None)
    known = {field.name for field in dataclasses.fields(METHODS[method].Settings)}
    for key in config:
        choose(f"{method} setting", key, known | {"temporal_heads", "text_heads"})
    settings = METHODS[method].Settings(
        **{"fidelity": "released", **read_settings(state), **config}
    )
    renamed = rename(state, settings)
    positions, width = renamed["temporal.frame_position_embeddings.weight"].shape
    made = METHODS[method](_backbone(renamed, tokenizer, text_heads), settings)
    layers = _count(renamed, "temporal.resblocks.")
    made.temporal = TemporalTransformer(
        width, layers, temporal_heads or head_default(width), positions
    )
    source = f"released {method} checkpoint"
    unused = _fill(made, {key: tensor.float() for key, tensor in renamed.items()}, source)
    if unused:
        log.info("%s: unused keys (%d): %s", source, len(unused), ", ".join(unused))
    return made.eval()


def convert(method: str, source: Path | Sequence[Path], target: Path, **config) -> str:
    """Rewrite a released checkpoint as one of the kit's; arguments as `load_official`. Returns its
    SHA-256."""
    return save(load_official(method, source, **config), target)


def _read(source: State | str | Path | Sequence[Path]) -> State:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Path):
        return {key: tensor for part in source for key, tensor in _read(part).items()}
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a file of plain tensors: {str(error).splitlines()[0]}"
        ) from None


def _glscl_settings(state: State) -> dict:
    return {
        "queries": len(_need(state, "spatial_queries")),
        "decoder_layers": _count(state, "transformer_decoder_noun.layers."),
        "feedforward": len(_need(state, "transformer_decoder_noun.layers.0.linear1.bias")),
        "temporal_layers": _count(state, "transformerClip.resblocks."),
    }


def _rename_glscl(state: State, settings) -> dict[str, Tensor]:
    names = {f"clip.{part}": f"backbone.clip.text.{part}" for part in CLIP_TEXT}
    names |= {f"clip.{part}": f"backbone.clip.{part}" for part in ("visual.", "logit_scale")}
    names |= {
        "transformerClip.": "temporal.",
        "frame_position_embeddings.": "temporal.frame_position_embeddings.",
    }
    if settings.shared_queries:
        names["spatial_queries"] = "queries.both.weight"
    else:
        names |= {"spatial_queries": "queries.video.weight", "noun_queries": "queries.text.weight"}
    if settings.shared_decoder:
        names["transformer_decoder_noun."] = "decoder.both."
    else:
        names |= {
            "transformer_decoder_noun.": "decoder.text.",
            "transformer_decoder_spatial.": "decoder.video.",
        }
    return _rename(state, names)


def _hmmc_settings(state: State) -> dict:
    return {
        "temporal_layers": _count(state, "visual_encoder.temporal_transformer.resblocks."),
        "max_frames": len(_need(state, "visual_encoder.frame_position_embeddings.weight")),
    }


def _rename_hmmc(state: State, settings) -> dict[str, Tensor]:
    names = {
        "text_encoder.chinese_encoder.": "backbone.clip.text.transformer.",
        "text_encoder.text_proj.": "backbone.clip.text.proj.",
        "visual_encoder.visual.": "backbone.clip.visual.",
        "visual_encoder.temporal_transformer.": "temporal.",
        "visual_encoder.frame_position_embeddings.": "temporal.frame_position_embeddings.",
    }
    names |= {f"text_encoder.{part}": f"backbone.clip.text.{part}" for part in CLIP_TEXT}
    return _rename(state, names) | {"backbone.clip.logit_scale": torch.tensor(RELEASED_LOGIT_SCALE)}


def _rename(state: State, prefixes: dict[str, str]) -> dict[str, Tensor]:
    """`state` under the kit's names; a key that no prefix fits keeps its own, and is not used."""
    renamed = {}
    for key, tensor in state.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        renamed[prefixes.get(prefix, "") + key.removeprefix(prefix)] = tensor
    return renamed


# name: renaming, settings from shapes, default number of temporal heads by width
OFFICIAL = {
    "glscl": (_rename_glscl, _glscl_settings, lambda width: max(1, width // HEAD_WIDTH)),
    "hmmc": (_rename_hmmc, _hmmc_settings, lambda width: HMMC_TEMPORAL_HEADS),
}


def _need(state: State, key: str) -> Tensor:
    if key not in state:
        raise ValueError(f"released checkpoint: {key} is missing")
    return state[key]


def _count(state: State, prefix: str) -> int:
    """Number of layers `prefix`0, `prefix`1, ..."""
    return len({key for name in state for key in re.findall(rf"^{re.escape(prefix)}\d+", name)})


def _backbone(state: State, tokenizer, text_heads: int | None) -> Backbone:
    """Towers of the sizes that `state`, under the kit's names, has."""
    sizes = _sizes(state)
    chinese = any(key.startswith("backbone.clip.text.transformer.embeddings.") for key in state)
    if chinese:  # open_clip builds one from files only: a small text tower holds the place
        text = {"context_length": 1, "vocab_size": 1, "width": HEAD_WIDTH, "heads": 1, "layers": 1}
    else:
        text = _text_sizes(state)
    clip = CustomTextCLIP(sizes["embed_dim"], sizes["vision_cfg"], text, quick_gelu=True)
    set_model_preprocess_cfg(
        clip, {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    )
    if chinese:
        clip.text = _bert(state, sizes["embed_dim"], text_heads)
        clip.context_length = clip.text.context_length
        return Backbone(clip, tokenizer, CONVERTED)
    sizes |= {"quick_gelu": True, "text_cfg": text}
    name = next((n for n in KNOWN_BACKBONES if open_clip.get_model_config(n) == sizes), CONVERTED)
    return Backbone(
        clip, tokenizer or open_clip.SimpleTokenizer(context_length=text["context_length"]), name
    )


def _sizes(state: State) -> dict:
    patches = _need(state, "backbone.clip.visual.conv1.weight")
    width, patch = patches.shape[0], patches.shape[-1]
    grid = math.isqrt(len(_need(state, "backbone.clip.visual.positional_embedding")) - 1)
    layers = _count(state, "backbone.clip.visual.transformer.resblocks.")
    vision = {"image_size": grid * patch, "layers": layers, "width": width, "patch_size": patch}
    return {"embed_dim": _need(state, "backbone.clip.visual.proj").shape[1], "vision_cfg": vision}


def _text_sizes(state: State) -> dict:
    words, width = _need(state, "backbone.clip.text.token_embedding.weight").shape
    return {
        "context_length": len(_need(state, "backbone.clip.text.positional_embedding")),
        "vocab_size": words,
        "width": width,
        "heads": width // HEAD_WIDTH,
        "layers": _count(state, "backbone.clip.text.transformer.resblocks."),
    }


def _bert(state: State, embed_dim: int, heads: int | None) -> HFTextEncoder:
    try:
        from transformers import BertConfig
    except ImportError:
        raise ImportError(
            "Chinese checkpoints need transformers: pip install 'tvrkit[zh]'"
        ) from None
    tower = "backbone.clip.text.transformer."
    words, width = _need(state, f"{tower}embeddings.word_embeddings.weight").shape
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=_count(state, f"{tower}encoder.layer."),
        num_attention_heads=heads or max(MIN_BERT_HEADS, width // HEAD_WIDTH),
        intermediate_size=len(_need(state, f"{tower}encoder.layer.0.intermediate.dense.bias")),
        max_position_embeddings=len(_need(state, f"{tower}embeddings.position_embeddings.weight")),
    )
    text = HFTextEncoder("", embed_dim, config, pooler_type="cls_pooler", proj_type="linear")
    text.proj = nn.Linear(width, embed_dim)  # open_clip's has no bias, the released one has
    return text
