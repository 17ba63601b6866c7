"""One model of each family that backbones are built of, made small: random weights, few layers."""

import copy
import json
from contextlib import ExitStack
from unittest.mock import patch

import open_clip
import torch
from open_clip import CoCa, factory, timm_model

from tvrkit.data.batch import TextVideoBatch
from tvrkit.data.text import tokenise
from tvrkit.models import hub
from tvrkit.models.backbone import Backbone, create_backbone
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.settings import BackboneConfig

# name: what it lacks
FAMILIES = {
    "ViT-B-32-quickgelu": "",
    "ViT-B-16": "",
    "RN50": "ModifiedResNet",
    "PE-Core-T-16-384": "",
    "PE-Core-S-16-384": "",
    "PE-Core-B-16": "",
    "ViT-B-16-SigLIP": "",
    "ViT-B-32-SigLIP2-256": "",
    "MobileCLIP2-S0": "FastVit",
    "MobileCLIP2-S2": "FastVit",
    "EVA02-B-16": "",
    "convnext_base": "ConvNeXt",
    "ViTamin-S": "",
    "coca_ViT-B-32": "attentional pooler",
    "xlm-roberta-base-ViT-B-32": "",
    "nllb-clip-base": "",
}
LAYERS, SIZE, WORDS = (
    2,
    64,
    ["a", "small", "red", "circle", "on", "the", "left", "of", "two", "big", "blue", "squares"],
)
BUILT = timm_model.timm.create_model


def _shallow(name, **options):
    """timm's models with few blocks and small frames; FastViT and ViTamin have few as they are."""
    if name.startswith(("vit", "eva02")):
        options["img_size"] = SIZE
    if name.startswith(("vit_", "eva02")):
        options["depth"] = LAYERS
    elif name.startswith("convnext"):
        options["depths"] = (1, 1, 1, 1)
    return BUILT(name, **options)


def small(name: str) -> dict:
    """The config of a model with few layers and small frames; few words where one is made."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    vision["image_size"] = SIZE
    if "layers" in vision:
        vision["layers"] = LAYERS if isinstance(vision["layers"], int) else [1, 1, 1, 1]
    if "hf_model_name" not in text:
        text |= {"layers": LAYERS, "width": 64, "heads": 2}
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = 300
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    return config


def make_tokenizer(folder, bos: str | None):
    """A word tokenizer as SigLIP's (ends in EOS) or XLM-R's (begins with BOS too), padded."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", *([bos] if bos else [])]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("</s>", 1), *([(bos, 3)] if bos else [])]
    single = f"{bos} $A </s>" if bos else "$A </s>"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {"bos_token": bos} if bos else {}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)


def make_text_model(folder, name: str):
    """Configuration and tokenizer of a small transformers text tower."""
    from transformers import M2M100Config, XLMRobertaConfig

    make_tokenizer(folder, "<s>")
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "vocab_size": 40}
    if name.startswith("nllb"):
        sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 80}
        M2M100Config(**sizes, **heads, **ids).save_pretrained(folder)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 64, "max_position_embeddings": 80}
        XLMRobertaConfig(**sizes, **ids).save_pretrained(folder)


def build(name: str, folder, pretrained=None, preprocessing=None):
    """`create_backbone` of a small model; what the hub has lies in `folder`."""
    config = small(name)
    with ExitStack() as stack:
        stack.enter_context(patch.dict(factory._MODEL_CONFIGS, {name: config}))
        stack.enter_context(patch.object(timm_model.timm, "create_model", _shallow))
        if "hf_tokenizer_name" in config["text_cfg"]:
            if not (folder / "tokenizer_config.json").exists():
                made = make_text_model if "hf_model_name" in config["text_cfg"] else None
                made(folder, name) if made else make_tokenizer(folder, None)
            stack.enter_context(patch.object(hub, "folder", lambda *_: folder))
        return create_backbone(BackboneConfig(name, pretrained, preprocessing))


def save_facts(path, mean, resize, interpolation):
    """An open_clip_config.json as the hub keeps it beside weights."""
    facts = {"mean": [mean] * 3, "std": [1, 1, 1]}
    facts |= {"resize_mode": resize, "interpolation": interpolation}
    path.write_text(json.dumps({"preprocess_cfg": facts}))


CAPTIONS = ["a small red circle", "two big blue squares on the left of a circle", "the left"]


def case(name: str, folder) -> tuple[CLIP4Clip, TextVideoBatch]:
    """Mean pooling over a small model, and a batch of three pairs for it."""
    torch.manual_seed(0)
    backbone = build(name, folder).eval()
    tokens, mask, weight = tokenise(CAPTIONS, backbone.tokenizer, 16)
    random, size = torch.Generator().manual_seed(0), backbone.image_size
    frames = torch.randint(256, (3, 2, 3, size, size), dtype=torch.uint8, generator=random)
    rows = torch.arange(3)
    batch = TextVideoBatch(tokens, mask, weight, frames, torch.ones(3, 2).bool(), rows, rows)
    return CLIP4Clip(backbone, CLIP4Clip.Settings(head="meanP")).eval(), batch


@torch.no_grad()
def expected(backbone: Backbone, batch: TextVideoBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences and frames as open_clip's own functions give them."""
    clip, length = backbone.clip, None if backbone.is_hf else backbone.context_length
    whole = backbone.tokenizer(CAPTIONS, context_length=length or 16)
    pixels = backbone.normalise(batch.frames.flatten(0, 1))
    if isinstance(clip, CoCa):
        return clip.text(whole)[0], clip.visual(pixels)[0]
    return clip.encode_text(whole), clip.encode_image(pixels)


def step(method: CLIP4Clip, batch: TextVideoBatch) -> dict[str, torch.Tensor]:
    """One step of training; the gradients."""
    method.train()
    method.loss(method.encode_text(batch), method.encode_video(batch), batch)["loss"].backward()
    gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    torch.optim.SGD(method.parameters(), 1e-3).step()
    method.eval()
    return gradients
