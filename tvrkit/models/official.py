"""Checkpoints of the released codes: GLSCL, and HMMC in English and Chinese.

Sizes are read off the tensors' shapes, and weights get the kit's names.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip import CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.model import set_model_preprocess_cfg
from torch import Tensor, nn

from tvrkit.models import METHODS
from tvrkit.models.backbone import Backbone
from tvrkit.models.checkpoints import State, fill, read_tensors, save
from tvrkit.models.method import Method
from tvrkit.models.temporal import HEAD_WIDTH, TemporalTransformer
from tvrkit.settings import choose

log = logging.getLogger(__name__)

# Released models whose architecture has a name in open_clip; others are called CONVERTED.
KNOWN_BACKBONES = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
CONVERTED = "converted"
RELEASED_LOGIT_SCALE = math.log(100.0)  # HMMC's constant, which its checkpoints do not hold
HMMC_TEMPORAL_HEADS = 8  # 512 / 64, whatever the width
MIN_BERT_HEADS = 2  # of the smallest BERT; heads of all published sizes are 64 wide
TEXT, VISUAL, TEMPORAL = "backbone.clip.text.", "backbone.clip.visual.", "temporal."
LOGIT_SCALE, POSITIONS = "backbone.clip.logit_scale", "frame_position_embeddings."
CLIP_TEXT = ["token_embedding", "positional_embedding", "transformer", "ln_final"]
CLIP_TEXT += ["text_projection"]
# GLSCL's names by what is shared; the unshared half is saved, and not used, where it is.
QUERIES = {
    True: {"spatial_queries": "queries.both.weight"},
    False: {"spatial_queries": "queries.video.weight", "noun_queries": "queries.text.weight"},
}
NOUN, SPATIAL = "transformer_decoder_noun.", "transformer_decoder_spatial."
DECODERS = {
    True: {NOUN: "decoder.both."},
    False: {NOUN: "decoder.text.", SPATIAL: "decoder.video."},
}
BERT_WORDS = f"{TEXT}transformer.embeddings.word_embeddings.weight"
# open_clip builds a BERT tower from files only: this small one holds its place.
PLACEHOLDER = {"context_length": 1, "vocab_size": 1, "width": HEAD_WIDTH, "heads": 1, "layers": 1}


class Weights(dict[str, Tensor]):
    """A state dict that names what it lacks, and counts its layers."""

    def __missing__(self, key: str) -> Tensor:
        raise ValueError(f"released checkpoint: {key} is missing")

    def layers(self, prefix: str) -> int:
        """Number of layers `prefix`0, `prefix`1, ..."""
        return len({m[0] for key in self if (m := re.match(rf"{re.escape(prefix)}\d+", key))})

    def renamed(self, prefixes: Mapping[str, str]) -> Weights:
        """The same under the kit's names; a key that no prefix fits keeps its own, and is not
        used."""
        known = re.compile(f"^(?:{'|'.join(map(re.escape, prefixes))})")
        return Weights({known.sub(lambda m: prefixes[m[0]], key): self[key] for key in self})


class Release(NamedTuple):
    """What one released code's checkpoints are like.

    Attributes:
        prefixes: the kit's names for theirs, by the settings.
        settings: what shapes show of the settings.
        temporal_heads: by the width, where the caller does not say.
    """

    prefixes: Callable[[Any], dict[str, str]]
    settings: Callable[[Weights], dict[str, int]]
    temporal_heads: Callable[[int], int]


def _glscl_settings(weights: Weights) -> dict[str, int]:
    decoder = f"{NOUN}layers."
    return {
        "queries": len(weights["spatial_queries"]),
        "decoder_layers": weights.layers(decoder),
        "feedforward": len(weights[f"{decoder}0.linear1.bias"]),
        "temporal_layers": weights.layers("transformerClip.resblocks."),
    }


def _glscl_prefixes(settings) -> dict[str, str]:
    names = {f"clip.{part}": f"{TEXT}{part}" for part in CLIP_TEXT}
    names |= {"clip.visual.": VISUAL, "clip.logit_scale": LOGIT_SCALE}
    names |= {"transformerClip.": TEMPORAL, POSITIONS: f"{TEMPORAL}{POSITIONS}"}
    return names | QUERIES[settings.shared_queries] | DECODERS[settings.shared_decoder]


def _hmmc_settings(weights: Weights) -> dict[str, int]:
    return {
        "temporal_layers": weights.layers("visual_encoder.temporal_transformer.resblocks."),
        "max_frames": len(weights[f"visual_encoder.{POSITIONS}weight"]),
    }


def _hmmc_prefixes(settings) -> dict[str, str]:
    names = {f"text_encoder.{part}": f"{TEXT}{part}" for part in CLIP_TEXT}
    names |= {"text_encoder.chinese_encoder.": f"{TEXT}transformer."}
    names |= {"text_encoder.text_proj.": f"{TEXT}proj.", "visual_encoder.visual.": VISUAL}
    names |= {"visual_encoder.temporal_transformer.": TEMPORAL}
    return names | {f"visual_encoder.{POSITIONS}": f"{TEMPORAL}{POSITIONS}"}


OFFICIAL = {
    "glscl": Release(_glscl_prefixes, _glscl_settings, lambda width: max(1, width // HEAD_WIDTH)),
    "hmmc": Release(_hmmc_prefixes, _hmmc_settings, lambda width: HMMC_TEMPORAL_HEADS),
}


def load_official(
    method: str,
    state_dict_or_path: State | str | Path | Sequence[Path],
    *,
    tokenizer=None,
    temporal_heads: int | None = None,
    text_heads: int | None = None,
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
        temporal_heads, text_heads: attention heads of the temporal transformer and of a Chinese
            text tower, which shapes do not show; default what the released code has.
        config: any of the method's settings, instead of what shapes show (fidelity is "released" by
            default).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown method or keyword, a missing key, a tower that is no vision transformer,
            or a file that can't be read.
    """
    release = OFFICIAL[choose("released method", method, OFFICIAL)]
    weights, cls = Weights(_read(state_dict_or_path)), METHODS[method]
    for key in config:
        choose(f"{method} setting", key, [field.name for field in fields(cls.Settings)])
    source = f"released {method} checkpoint"
    try:
        settings = cls.Settings(**{"fidelity": "released", **release.settings(weights), **config})
        weights = weights.renamed(release.prefixes(settings))
        weights.setdefault(LOGIT_SCALE, torch.tensor(RELEASED_LOGIT_SCALE))
        positions, width = weights[f"{TEMPORAL}{POSITIONS}weight"].shape
        layers, heads = weights.layers(f"{TEMPORAL}resblocks."), release.temporal_heads(width)
        made = cls(_backbone(weights, tokenizer, text_heads), settings)
        made.temporal = TemporalTransformer(width, layers, temporal_heads or heads, positions)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # whatever sizes that fit nowhere raise
        raise ValueError(f"{source}: its shapes are of no such model: {error!r:.200}") from None
    unused = fill(made, {key: tensor.float() for key, tensor in weights.items()}, source)
    if unused:
        log.info("%s: unused keys (%d): %s", source, len(unused), ", ".join(unused))
    return made.eval()


def convert(method: str, source: Path | Sequence[Path], target: Path, **config) -> str:
    """Rewrite a released checkpoint as one of the kit's; arguments as `load_official`. Returns the
    `digest` of its weights."""
    return save(load_official(method, source, **config), target)


def _read(source: State | str | Path | Sequence[Path]) -> State:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Path):
        return {key: tensor for part in source for key, tensor in _read(part).items()}
    return read_tensors(source)[0]


def clip_config(weights: Weights) -> dict[str, Any]:
    """open_clip's configuration of the towers in `weights`, which have the kit's names."""
    patches = weights[f"{VISUAL}conv1.weight"]
    grid = math.isqrt(len(weights[f"{VISUAL}positional_embedding"]) - 1)
    vision = {
        "image_size": grid * patches.shape[-1],
        "patch_size": patches.shape[-1],
        "width": patches.shape[0],
        "layers": weights.layers(f"{VISUAL}transformer.resblocks."),
    }
    text = PLACEHOLDER
    if BERT_WORDS not in weights:
        words, width = weights[f"{TEXT}token_embedding.weight"].shape
        text = {
            "context_length": len(weights[f"{TEXT}positional_embedding"]),
            "vocab_size": words,
            "width": width,
            "heads": width // HEAD_WIDTH,
            "layers": weights.layers(f"{TEXT}transformer.resblocks."),
        }
    sizes = {"embed_dim": weights[f"{VISUAL}proj"].shape[1], "vision_cfg": vision}
    return {**sizes, "text_cfg": text, "quick_gelu": True}


def _backbone(weights: Weights, tokenizer, text_heads: int | None) -> Backbone:
    """Towers of the sizes that `weights`, under the kit's names, have."""
    config = clip_config(weights)
    clip = CustomTextCLIP(**config)
    pixels = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    set_model_preprocess_cfg(clip, pixels)
    if BERT_WORDS in weights:
        clip.text = _bert(weights, config["embed_dim"], text_heads)
        clip.context_length = clip.text.context_length
        return Backbone(clip, tokenizer, CONVERTED)
    known = (name for name in KNOWN_BACKBONES if open_clip.get_model_config(name) == config)
    tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=clip.context_length)
    return Backbone(clip, tokenizer, next(known, CONVERTED))


def _bert(weights: Weights, embed_dim: int, heads: int | None) -> HFTextEncoder:
    try:
        from transformers import BertConfig
    except ImportError:
        hint = "pip install 'tvrkit[zh]'"
        raise ImportError(f"Chinese checkpoints need transformers: {hint}") from None
    tower = f"{TEXT}transformer."
    words, width = weights[BERT_WORDS].shape
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=weights.layers(f"{tower}encoder.layer."),
        num_attention_heads=heads or max(MIN_BERT_HEADS, width // HEAD_WIDTH),
        intermediate_size=len(weights[f"{tower}encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(weights[f"{tower}embeddings.position_embeddings.weight"]),
    )
    text = HFTextEncoder("", embed_dim, config, pooler_type="cls_pooler", proj_type="linear")
    text.proj = nn.Linear(width, embed_dim)  # open_clip's has no bias, the released one has
    return text
