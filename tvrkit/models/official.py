"""Checkpoints of the released codes: GLSCL, DMAE, CLIP4Clip, and HMMC in English and Chinese.

`assets/released.yaml` says how each code names the kit's weights; sizes are read off the shapes.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
import yaml
from open_clip import CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from tvrkit import files
from tvrkit.models import METHODS
from tvrkit.models.backbone import Backbone
from tvrkit.models.checkpoints import State, fill, read_tensors
from tvrkit.models.method import RELEASED_SCALE, Method
from tvrkit.models.temporal import HEAD_WIDTH
from tvrkit.settings import choose, parse

log = logging.getLogger(__name__)

PREPROCESSING = asdict(PreprocessCfg())  # OpenAI's, of all released models
# Released models whose architecture has a name in open_clip; others are called CONVERTED.
KNOWN_BACKBONES = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
CONVERTED = "converted"
MIN_BERT_HEADS = 2  # of the smallest BERT; heads of all published sizes are 64 wide
TEXT, VISUAL = "backbone.clip.text.", "backbone.clip.visual."
BERT_WORDS = f"{TEXT}transformer.embeddings.word_embeddings.weight"
# open_clip builds a BERT tower from files only: this small one holds its place.
PLACEHOLDER = {"context_length": 1, "vocab_size": 1, "width": HEAD_WIDTH, "heads": 1, "layers": 1}
OFFICIAL = yaml.safe_load((files.ASSETS / "released.yaml").read_text(encoding="utf-8"))


class Released:
    """A released state dict, read by the kit's names.

    Args:
        method: a key of `OFFICIAL`.
        state: under the released names; modules that hold the model ("module.", "dmae_utils.") may
            stand before them.

    Raises:
        ValueError: another method, or, when read, a name that is missing.
    """

    def __init__(self, method: str, state: State):
        self.method = method
        self.names = OFFICIAL[choose("released method", method, OFFICIAL)]["names"]
        known = "|".join(map(re.escape, self.names.values()))
        holder = re.compile(rf"^(?:\w+\.)*?(?={known})")
        self.state = {holder.sub("", name): tensor for name, tensor in state.items()}

    def name(self, key: str) -> str:
        """The released name of what the kit calls `key`."""
        prefix = next((prefix for prefix in self.names if key.startswith(prefix)), "")
        return self.names.get(prefix, "") + key.removeprefix(prefix)

    def __contains__(self, key: str) -> bool:
        return self.name(key) in self.state

    def __getitem__(self, key: str) -> Tensor:
        files.expect(key in self, self, self.name(key), "none")
        return self.state[self.name(key)].float()

    def layers(self, prefix: str) -> int:
        """Number of layers `prefix`0, `prefix`1, ..."""
        layer = re.compile(rf"{re.escape(self.name(prefix))}\d+")
        return len({match[0] for name in self.state if (match := layer.match(name))})

    def settings(self) -> dict[str, Any]:
        """What names and shapes show of the method's settings, and "released" fidelity.

        Raises:
            ValueError: heads or towers that the method does not have here.
        """
        release = OFFICIAL[self.method]
        shown = {"fidelity": "released"} | release.get("settings", {})
        for key, name in release["shown"].items():
            if name.endswith("."):
                shown[key] = self.layers(name)
            elif name in self:
                shown[key] = len(self[name])
        if self.method in ("dmae", "clip4clip"):
            shown["head"] = "seqTransf" if self.layers("temporal.resblocks.") else "meanP"
        for part, head in release.get("lacks", {}).items():
            lacks, got = any(part in name for name in self.state), f"{part.rstrip('.')} ({head})"
            files.expect(not lacks, self, "meanP or seqTransf", got)
        if self.method == "dmae":
            towers = self.layers(f"{VISUAL}transformer.resblocks.")
            lacking = "none: the released configurations lack them (finding 12)"
            files.expect(towers, self, "CLIP's towers (clip.visual...)", lacking)
            if not {"max_words", "max_frames"} <= shown.keys():
                shown["partial_order"] = []
        return shown

    def __str__(self) -> str:
        return f"released {self.method} checkpoint"


def recognise(state: State) -> Released | None:
    """The weights as those of the method whose released code names them like this, None for
    another origin."""
    for method, release in OFFICIAL.items():
        weights, marks = Released(method, state), tuple(release["marks"])
        if any(name.startswith(marks) for name in weights.state):
            return weights
    return None


def fill_released(method: Method, weights: Released) -> list[str]:
    """Fill a method with the weights of its released code, and return the names it has no use for.

    Frame positions beyond the method's are cut: frames never reach them.

    Raises:
        ValueError: missing keys or other shapes.
    """
    own, positions = method.state_dict(), "temporal.frame_position_embeddings.weight"
    scale = weights.name("backbone.clip.logit_scale")  # HMMC's checkpoints do not hold it
    weights.state.setdefault(scale, torch.tensor(math.log(RELEASED_SCALE)))
    state = {key: weights[key] for key in own}
    if positions in state:
        state[positions] = state[positions][: len(own[positions])]
    fill(method, state, str(weights))
    used = {weights.name(key) for key in own}
    return [name for name in weights.state if name not in used]


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
    weights, cls = Released(method, read(state_dict_or_path)), METHODS[method]
    try:
        settings: Any = parse(cls.Settings, weights.settings() | config, f"{method} settings")
        spoken = "zh" if BERT_WORDS in weights else "en"
        asked = choose("language", language or spoken, ("en", "zh"))
        files.expect(asked == spoken, weights, f"a text tower of {asked}", spoken)
        loaded = cls(_backbone(weights, tokenizer, text_heads), settings)
        unused = fill_released(loaded, weights)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # whatever sizes that fit nowhere raise
        raise ValueError(f"{weights}: its shapes are of no such model: {error!r:.200}") from None
    if unused:
        log.info("%s: unused keys (%d): %s", weights, len(unused), ", ".join(unused))
    return loaded.eval()


def read(source: State | str | Path | Sequence[Path]) -> State:
    """A state dict, from a file, see `read_tensors`, or from several that make one."""
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str | Path):
        return read(read_tensors(source)[0])
    return {key: tensor for part in source for key, tensor in read(part).items()}


def clip_config(weights: Released) -> dict[str, Any]:
    """open_clip's configuration of the towers in `weights`."""
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


def _backbone(weights: Released, tokenizer, text_heads: int | None) -> Backbone:
    """Towers of the sizes that `weights` have."""
    config = clip_config(weights)
    clip = CustomTextCLIP(**config)
    set_model_preprocess_cfg(clip, PREPROCESSING)
    if BERT_WORDS in weights:
        clip.text = _bert(weights, config["embed_dim"], text_heads)
        clip.context_length = clip.text.context_length
        return Backbone(clip, tokenizer, CONVERTED)
    known = (name for name in KNOWN_BACKBONES if open_clip.get_model_config(name) == config)
    tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=clip.context_length)
    return Backbone(clip, tokenizer, next(known, CONVERTED))


def _bert(weights: Released, embed_dim: int, heads: int | None) -> HFTextEncoder:
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
