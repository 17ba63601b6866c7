"""Any open_clip model as a backbone: word, sentence and frame features, and attention over
patches."""

import hashlib
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import open_clip
import torch
from open_clip import CoCa, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import TextTransformer
from open_clip.transformer import text_global_pool as pool_text
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.nn.functional import pad

from tvrkit import files
from tvrkit.data import records
from tvrkit.data.preprocessing import NAMES, Preprocessing
from tvrkit.files import expect
from tvrkit.models import hub, towers
from tvrkit.models.patches import PatchAttention, lacks_patches, patch_attention
from tvrkit.settings import BackboneConfig, choose

# open_clip warns of random weights, which were asked for: cards and tables call them untrained
logging.getLogger().addFilter(lambda record: "initialized randomly" not in record.getMessage())
PROBE = "a small crimson circle slowly drifts past two striped squares; 一个红色的圆慢慢移动"
EMBEDDED = "tvrkit"  # `pretrained` of the weights that come with the kit


class Embedded(NamedTuple):
    """The files of a model that comes with the kit: open_clip config, BPE merges, weights."""

    config: Path
    merges: Path
    weights: Path


TINY, ENDINGS = "tvrkit-tiny", (".json", "-merges.txt.gz", ".safetensors")
BACKBONES = {TINY: Embedded(*(files.ASSETS / f"{TINY}{ending}" for ending in ENDINGS))}
open_clip.add_model_config(files.ASSETS)  # the embedded model's, and that of HMMC's Chinese release


class Backbone(nn.Module):
    """An open_clip model with one interface for all text and image towers.

    Parameters are told apart by name: `clip.text.*`, `clip.visual.*`, and `clip.logit_scale`.

    Args:
        clip: open_clip model with separate towers, as `create_model(..., force_custom_text=True)`
            builds it. CoCa's caption decoder and SigLIP's score bias are dropped: no score here
            reads the one, and the other is the same for every pair.
        tokenizer: open_clip tokenizer (SimpleTokenizer or HFTokenizer).
        name: exact name of the architecture, kept in checkpoints.
        pretrained: where the weights come from, None = random.

    Attributes:
        preprocessing: what the image tower's weights saw.
        image_size: S, height and width of a frame.
        width: D of the joint space.
        context_length: largest number of tokens, SOT and EOT included.
        whole_context: the text tower always runs at the context length, as it was trained: padding
            is seen (SigLIP, MobileCLIP), or the sentence is a token behind it (CoCa).

    Raises:
        ValueError: a model whose towers give no token features or whose frames are not square.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, tokenizer: Any, name: str, pretrained: str | None = None):
        super().__init__()
        text, known = getattr(clip, "text", None), TextTransformer | HFTextEncoder
        if not isinstance(clip, CustomTextCLIP | CoCa) or not isinstance(text, known):
            expected = f"expected an image and a text tower, got {type(clip).__name__}"
            raise ValueError(f"backbone {name}: {expected}")
        height, width = to_2tuple(clip.visual.image_size)
        expect(height == width, f"backbone {name}", "square frames", f"{height} x {width}")
        self.clip, self.tokenizer, self.name, self.pretrained = clip, tokenizer, name, pretrained
        if isinstance(clip, CoCa):
            del clip.text_decoder
        clip.logit_bias = None
        self.preprocessing = Preprocessing.from_facts(height, clip.visual.preprocess_cfg)
        self.image_size, self.context_length = height, clip.context_length
        self.is_hf, self.frozen = isinstance(text, HFTextEncoder), False
        self.width = text.output_dim
        self.whole_context = not self.is_hf and (text.attn_mask is None or text.cls_emb is not None)
        for key in ("mean", "std"):  # of RGB values in [0, 1]; not part of checkpoints
            values = torch.tensor(getattr(self.preprocessing, key)).view(3, 1, 1)
            self.register_buffer(key, values, persistent=False)

    def freeze(self) -> None:
        """Leave both towers as they are, in evaluation mode; the logit scale still learns."""
        self.frozen = True
        self.clip.text.requires_grad_(False)
        self.clip.visual.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """As of any module, unless it is frozen."""
        return super().train(mode and not self.frozen)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on cosines in the loss, a trained scalar."""
        return self.clip.logit_scale

    @property
    def tokenizer_id(self) -> str:
        """Short hash of the tokens of a probe text, "none" without a tokenizer: another vocabulary,
        another hash."""
        if self.tokenizer is None:
            return "none"
        tokens = self.tokenizer([PROBE])
        return hashlib.sha256(str(tokens[tokens != 0].tolist()).encode()).hexdigest()[:12]

    @property
    def lacks(self) -> list[str]:
        """What this family cannot do, by name; said before training starts."""
        tower = lacks_patches(self.clip.visual)
        return [f"patch attention (its image tower: {tower})"] if tower else []

    def encode_text(
        self, tokens: Tensor, mask: Tensor, mask_padding: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Word and sentence features, from one pass through the text tower.

        The tower runs at the length of `tokens`, with CLIP's positions cut to it, unless it needs
        the `whole_context`. Nothing after EOT reaches the features before it where CLIP's text
        tower is causal, or a transformers tower is given the mask.

        Args:
            tokens: (B, L) int64 of the backbone's tokenizer; features (B, 1 + L, D) float, see
                `TextVideoBatch`, pass through.
            mask: (B, L) bool, True on real tokens.
            mask_padding: CLIP's tower masks padded keys besides what is causal. Only the padded
                rows of `words` differ (GLSCL's released decoders read them).

        Returns:
            words (B, L, D) float: all tokens through the last LayerNorm and the projection;
            sentence (B, D) float: the tower's own pooling (CLIP: the EOT token), projected. Not
            normalised.

        Raises:
            ValueError: L exceeds the context length, or a token is none of the vocabulary.
        """
        if tokens.is_floating_point():
            expect(not mask_padding, "released GLSCL", "tokens: it reads padded words", "features")
            return tokens[:, 1:], tokens[:, 0]
        text, length, longest = self.clip.text, tokens.shape[1], self.context_length
        expect(length <= longest, self.name, f"at most {longest} tokens", length)
        if self.is_hf:
            output = text.transformer(input_ids=tokens, attention_mask=mask.long())
            return text.proj(output.last_hidden_state), text.proj(text.pooler(output, mask.long()))
        if self.whole_context:
            fast = self.tokenizer.tokenizer if isinstance(self.tokenizer, HFTokenizer) else None
            tokens = pad(tokens, (0, longest - length), value=fast.pad_token_id if fast else 0)
        try:
            x, attend = text._embeds(tokens)
        except IndexError:
            got = f"token {tokens.max()}: another tokenizer?"
            raise ValueError(f"{self.name}: expected tokens of its vocabulary, got {got}") from None
        if attend is not None:
            attend = attend[..., : x.shape[1], : x.shape[1]]
        if mask_padding and not self.whole_context:
            attend = attend.masked_fill(~mask[:, None, None], -torch.inf)
        words = text.ln_final(towers.run(text.transformer, x, attend))
        if isinstance(text.text_projection, nn.Linear):
            words = text.text_projection(words)
        elif text.text_projection is not None:
            words = words @ text.text_projection
        if text.cls_emb is not None:
            return words[:, :length], words[:, -1]
        sentence = pool_text(words, tokens, text.pool_type, eos_token_id=text.eos_id)
        return words[:, :length], sentence

    def encode_frames(self, frames: Tensor) -> Tensor:
        """(B, F, D) float features, not normalised, of frames (B, F, 3, S, S), uint8 or normalised
        float; features pass through.

        Raises:
            ValueError: frames of another size.
        """
        if frames.dim() == 3:
            return frames
        images = self._checked(frames.flatten(0, 1))
        features = towers.encode_images(self.clip.visual, images, self.mean, self.std)
        if isinstance(features, tuple):  # CoCa's: the tokens for its decoder come second
            features = features[0]
        return features.unflatten(0, frames.shape[:2])

    def normalise(self, frames: Tensor) -> Tensor:
        """(..., 3, S, S) float as the image tower takes it: uint8 is scaled and standardised on its
        device.

        Raises:
            ValueError: frames of another size.
        """
        return towers.normalise(self._checked(frames), self.mean, self.std)

    def _checked(self, frames: Tensor) -> Tensor:
        expected, shape = (3, self.image_size, self.image_size), tuple(frames.shape)
        expect(shape[-3:] == expected, self.name, f"frames (..., {expected})", shape)
        return frames

    def patch_attention(self, frames: Tensor) -> PatchAttention:
        """What the image tower's tokens attend to, of frames (N, 3, S, S), uint8 or normalised.

        Raises:
            ValueError: the image tower is no vision transformer with plain attention.
        """
        tower = lacks_patches(self.clip.visual)
        expect(not tower, f"patch attention of {self.name}", "a vision transformer", tower)
        return patch_attention(self.clip.visual, self.normalise(frames))


def create_backbone(config: BackboneConfig, facts: Mapping[str, Any] | None = None) -> Backbone:
    """Build a backbone by its open_clip name, with the weights that `config.pretrained` names.

    Args:
        facts: preprocessing under open_clip's names, of weights that the caller fills in: then it
            has random ones, and none are looked for.

    Raises:
        ValueError: unknown name or tag (close choices are listed), a tag trained with another
            activation, or a weights file of another model.
        FileNotFoundError: weights, or a transformers tower's files, that are neither here nor
            reachable; the message says which file to fetch and where to put it.
    """
    name, tag = config.name, config.pretrained
    choose("backbone", name, open_clip.list_models())
    weights, facts = (None, facts) if facts else _find_weights(config)
    text = open_clip.get_model_config(name)["text_cfg"]
    biased = text.pop("hf_proj_bias", False)  # open_clip knows no such projection
    if "hf_model_name" in text:  # weights come from the file: the tower needs its configuration
        folder = hub.folder(text["hf_model_name"], "config.json")
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    options = {"force_custom_text": True, "text_cfg": text}
    options["force_preprocess_cfg"] = {key: facts[key] for key in NAMES.values() if key in facts}
    try:
        if weights and zipfile.is_zipfile(weights):
            files.check_zip(weights)
        clip = open_clip.create_model(name, str(weights) if weights else None, **options)
    except Exception as error:  # whatever a file that holds something else raises
        if weights is None:
            raise
        got = f"expected weights of {name}, got {files.reason(error):.200}"
        other = "name the model they are of; a trained method's file is a checkpoint"
        raise ValueError(f"{weights}: {got}: {other}") from error
    if biased:
        clip.text.proj = nn.Linear(clip.text.proj.in_features, clip.text.output_dim)
    # without weights, open_clip leaves a part of CoCa's decoder, which is dropped, as memory had it
    if weights and not all(weight.isfinite().all() for weight in clip.parameters()):
        raise ValueError(f"{weights}: expected finite weights, got NaN or infinity")
    return Backbone(clip, _tokenizer(name, text), name, tag)


def _tokenizer(name: str, text: dict[str, Any]) -> Any:
    if name in BACKBONES:
        merges = str(BACKBONES[name].merges)
        return open_clip.SimpleTokenizer(bpe_path=merges, context_length=text["context_length"])
    if "hf_tokenizer_name" not in text:
        return open_clip.get_tokenizer(name)
    return open_clip.tokenizer.HFTokenizer(
        str(hub.folder(text["hf_tokenizer_name"], "tokenizer_config.json")),
        context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )


def _find_weights(config: BackboneConfig) -> tuple[Path | None, Mapping[str, Any]]:
    """The weights file, and open_clip's facts about them, their preprocessing above all."""
    name, tag = config.name, config.pretrained
    if tag is None:
        return None, next(iter(facts_by_tag(name).values()), {})
    if tag == EMBEDDED and name in BACKBONES:
        weights, hint = BACKBONES[name].weights, "`tvrkit backbone pretrain` makes it"
        if not weights.is_file():
            raise FileNotFoundError(f"{weights.name} is missing: {hint}")
        return weights, {}
    if info := open_clip.get_pretrained_cfg(name, tag):
        own = f"null, as {tag} has its own"
        expect(not config.preprocessing, "backbone.preprocessing", own, config.preprocessing)
        _check_gelu(name, info, tag)
        return hub.weights(info["hf_hub"]), info
    path = Path(tag).expanduser()
    if path.is_file():
        return path, _facts_of_file(path, config)
    if path.suffix:
        raise FileNotFoundError(f"{path}: no such weights file for {name}")
    tags = ", ".join([*([EMBEDDED] if name in BACKBONES else []), *facts_by_tag(name)])
    raise ValueError(f"unknown weights {tag!r} of {name}: expected a path, null, or {tags}")


def _check_gelu(name: str, facts: Mapping[str, Any], whose: Any) -> None:
    quick = facts.get("quick_gelu", False)
    if quick != open_clip.get_model_config(name).get("quick_gelu", False):
        right = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
        raise ValueError(f"{name}: {whose} was trained with another GELU: use {right}")


def facts_by_tag(name: str) -> dict[str, dict]:
    """What open_clip knows of a model's weights, preprocessing and activation above all."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    return {tag: open_clip.get_pretrained_cfg(name, tag) for tag in tags}


def _facts_of_file(path: Path, config: BackboneConfig) -> Mapping[str, Any]:
    """Preprocessing of weights given as a file: of the tag that the recipe names, of
    `open_clip_config.json` beside it, or what all tags of the model agree on.

    Raises:
        ValueError: nothing of it says, or it is of a model with another activation.
    """
    by_tag, beside = facts_by_tag(config.name), path.parent / "open_clip_config.json"
    if tag := config.preprocessing:
        facts = by_tag[choose(f"tag of {config.name}", tag, by_tag)]
        _check_gelu(config.name, facts, tag)
        return facts
    if beside.is_file():
        whole, keys = files.read_json(beside), ("model_cfg", "preprocess_cfg")
        model, facts = (records.checked(whole.get(k, {}), dict, f"{beside}: {k}") for k in keys)
        _check_gelu(config.name, model or open_clip.get_model_config(config.name), beside)
        Preprocessing.from_facts(1, facts, f"{beside}: preprocess_cfg")
        return facts
    kinds = {Preprocessing.from_facts(1, facts): facts for facts in by_tag.values()}
    if len(kinds) == 1 or config.name in BACKBONES:
        return next(iter(kinds.values()), {})
    tags = f", or backbone.preprocessing, one of {', '.join(by_tag)}" if by_tag else ""
    expected = f"expected open_clip_config.json beside it{tags}"
    raise ValueError(f"{path}: how {config.name} wants pictures is not known: {expected}")
