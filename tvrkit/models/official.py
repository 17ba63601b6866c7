"""Checkpoints of the released codes: GLSCL, DMAE, CLIP4Clip, and HMMC in English and Chinese.

Sizes are read off the tensors' shapes, and weights get the kit's names.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip import CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from tvrkit.models import METHODS
from tvrkit.models.backbone import Backbone
from tvrkit.models.checkpoints import State, fill, read_tensors, save
from tvrkit.models.method import Method
from tvrkit.models.temporal import HEAD_WIDTH
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
NOUN, SPATIAL = "transformer_decoder_noun.", "transformer_decoder_spatial."
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

    def renamed(self, prefixes: Mapping[str, str]) -> "Weights":
        """The same under the kit's names, in float32; a key that no prefix fits keeps its own, and
        is not used. A module that holds the model ("dmae_utils.") may stand before the prefix."""
        known = re.compile(rf"^(?:\w+\.)*?({'|'.join(map(re.escape, prefixes))})")
        rename = {key: known.sub(lambda m: prefixes[m[1]], key) for key in self}
        return Weights({rename[key]: tensor.float() for key, tensor in self.items()})

    def find(self, name: str) -> Tensor | None:
        """The tensor whose key ends in `name`, None where there is none."""
        return next((self[key] for key in self if key.endswith(name)), None)


class Release(NamedTuple):
    """What one released code's checkpoints are like.

    Attributes:
        marks: parts of keys that only they have.
        prefixes: the kit's names for theirs, by the settings.
        shown: what keys and shapes show of the settings.
    """

    marks: tuple[str, ...]
    prefixes: Callable[[Any], dict[str, str]]
    shown: Callable[[Weights], dict[str, Any]]

    def settings(self, weights: Weights) -> dict[str, Any]:
        """What is `shown`, and "released" fidelity."""
        return {"fidelity": "released", **self.shown(weights)}


# Shared by all but HMMC, whose code descends from CLIP4Clip's as well.
SHARED = {f"clip.{part}": f"{TEXT}{part}" for part in CLIP_TEXT}
SHARED |= {"clip.visual.": VISUAL, "clip.logit_scale": LOGIT_SCALE}
SHARED |= {"transformerClip.": TEMPORAL, POSITIONS: f"{TEMPORAL}{POSITIONS}"}


def _glscl_settings(weights: Weights) -> dict[str, Any]:
    decoder = f"{NOUN}layers."
    return {
        "queries": len(weights["spatial_queries"]),
        "decoder_layers": weights.layers(decoder),
        "feedforward": len(weights[f"{decoder}0.linear1.bias"]),
        "temporal_layers": weights.layers("transformerClip.resblocks."),
    }


def _glscl_prefixes(settings) -> dict[str, str]:
    """By what is shared; the unshared half is saved, and not used, where it is."""
    queries, decoders = {"spatial_queries": "both"}, {NOUN: "both"}
    if not settings.shared_queries:
        queries = {"spatial_queries": "video", "noun_queries": "text"}
    if not settings.shared_decoder:
        decoders = {NOUN: "text", SPATIAL: "video"}
    names = {key: f"queries.{side}.weight" for key, side in queries.items()}
    return SHARED | names | {key: f"decoder.{side}." for key, side in decoders.items()}


def _clip4clip_settings(weights: Weights) -> dict[str, Any]:
    for key in ("cross.", "lstm_visual."):
        if any(key in name for name in weights):
            got = f"{key.rstrip('.')} (tightTransf or seqLSTM)"
            raise ValueError(
                f"released clip4clip checkpoint: expected meanP or seqTransf, got {got}"
            )
    layers = weights.layers("transformerClip.resblocks.")
    return {"head": "seqTransf", "layers": layers} if layers else {"head": "meanP"}


def _dmae_settings(weights: Weights) -> dict[str, Any]:
    if not any("clip.visual." in key for key in weights):
        expected = "expected CLIP's towers (clip.visual...), which the released configurations lack"
        raise ValueError(f"released dmae checkpoint: {expected} (finding 12)")
    layers = weights.layers("transformerClip.resblocks.")
    head = {"head": "seqTransf", "temporal_layers": layers} if layers else {"head": "meanP"}
    sizes = {"max_frames": "t2v_linear_xwp", "max_words": "v2t_linear_xwp"}
    norms = {key: weights.find(f"{name}.attn_proj.0.weight") for key, name in sizes.items()}
    known = {key: len(norm) for key, norm in norms.items() if norm is not None}
    return head | known | ({} if len(known) == len(norms) else {"partial_order": []})


DMAE_HEADS = {
    "text_weight_fc.": "word_weight.",
    "video_weight_fc.": "frame_weight.",
    "v2t_linear_xwp.": "partial_order.word_predictor.",
    "t2v_linear_xwp.": "partial_order.frame_predictor.",
}


def _hmmc_settings(weights: Weights) -> dict[str, Any]:
    return {
        "temporal_heads": HMMC_TEMPORAL_HEADS,
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
    "glscl": Release(("spatial_queries",), _glscl_prefixes, _glscl_settings),
    "hmmc": Release(("visual_encoder.visual.",), _hmmc_prefixes, _hmmc_settings),
    "dmae": Release(tuple(DMAE_HEADS), lambda settings: SHARED | DMAE_HEADS, _dmae_settings),
    "clip4clip": Release(("clip.visual.",), lambda settings: SHARED, _clip4clip_settings),
}


def recognise(weights: State) -> str | None:
    """The method whose released code names its weights like this, None for another origin."""
    for method, release in OFFICIAL.items():
        if any(mark in key for mark in release.marks for key in weights):
            return method
    return None


def fill_released(method: Method, name: str, weights: Weights) -> list[str]:
    """Fill a method with the weights of its released code, and return the keys it has no use for.

    Frame positions beyond the method's are cut: frames never reach them.

    Raises:
        ValueError: missing keys or other shapes.
    """
    state = weights.renamed(OFFICIAL[name].prefixes(method.settings))
    state.setdefault(LOGIT_SCALE, torch.tensor(RELEASED_LOGIT_SCALE))
    key, own = f"{TEMPORAL}{POSITIONS}weight", method.state_dict()
    if key in state and key in own:
        state[key] = state[key][: len(own[key])]
    return fill(method, state, f"released {name} checkpoint")


def load_official(
    method: str,
    state_dict_or_path: State | str | Path | Sequence[Path],
    *,
    language: str | None = None,
    tokenizer=None,
    text_heads: int | None = None,
    **config,
) -> Method:
    """A method with the weights of a released checkpoint, and towers of its sizes, in evaluation
    mode.

    Sizes are read off the tensors' shapes. Keys without use (GLSCL saves 23.1 M such weights) are
    logged.

    Args:
        method: a key of `OFFICIAL`.
        state_dict_or_path: the state dict, or a file (.safetensors; others by torch.load with
            weights_only), or several files that make one.
        language: "en" or "zh", that of the text tower; None = whichever is found.
        tokenizer: open_clip tokenizer; default CLIP's. A Chinese checkpoint does not hold its own:
            without one, captions can't be tokenised, and features of tokens are what there is.
        text_heads: attention heads of a Chinese text tower, which shapes do not show; default what
            the released code has.
        config: any of the method's settings, instead of what shapes show (fidelity is "released" by
            default).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown method, language or keyword, a text tower of the other language, a
            missing key, a tower that is no vision transformer, or a file that can't be read.
    """
    release = OFFICIAL[choose("released method", method, OFFICIAL)]
    weights, cls = Weights(read(state_dict_or_path)), METHODS[method]
    for key in config:
        choose(f"{method} setting", key, [field.name for field in fields(cls.Settings)])
    try:
        settings = cls.Settings(**{**release.settings(weights), **config})
        towers = weights.renamed(release.prefixes(settings))
        found = "zh" if BERT_WORDS in towers else "en"
        if choose("language", language or found, ("en", "zh")) != found:
            expected = f"expected a text tower of {language}, got {found}"
            raise ValueError(f"released {method} checkpoint: {expected}")
        made = cls(_backbone(towers, tokenizer, text_heads), settings)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # whatever sizes that fit nowhere raise
        shapes = f"released {method} checkpoint: its shapes are of no such model"
        raise ValueError(f"{shapes}: {error!r:.200}") from None
    unused = fill_released(made, method, weights)
    if unused:
        about = f"released {method} checkpoint: unused keys"
        log.info("%s (%d): %s", about, len(unused), ", ".join(unused))
    return made.eval()


def convert(method: str, source: Path | Sequence[Path], target: Path, **config) -> str:
    """Rewrite a released checkpoint as one of the kit's; arguments as `load_official`. Returns the
    `digest` of its weights."""
    return save(load_official(method, source, **config), target)


def read(source: State | str | Path | Sequence[Path]) -> State:
    """A state dict, from a file, see `read_tensors`, or from several that make one."""
    if isinstance(source, Mapping):  # less what DDP puts before a name
        return {key.removeprefix("module."): tensor for key, tensor in source.items()}
    if isinstance(source, str | Path):
        return read(read_tensors(source)[0])
    return {key: tensor for part in source for key, tensor in read(part).items()}


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
    set_model_preprocess_cfg(clip, asdict(PreprocessCfg()))  # OpenAI's
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
