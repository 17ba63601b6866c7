"""Backbones: features against open_clip's own, attention against plain loops, and what cannot be
had."""

import json
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tvrkit.models import hub
from tvrkit.models.backbone import BACKBONES, Backbone, create_backbone
from tvrkit.settings import BackboneConfig

from .families import build, save_facts

CAPTIONS = ["a small red circle on the left", "一个红色的小圆在左边"]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    torch.manual_seed(0)
    return create_backbone(BackboneConfig("tvrkit-tiny", pretrained=None)).eval()


@pytest.fixture(scope="module")
def vit_b32() -> Backbone:
    torch.manual_seed(0)
    return create_backbone(BackboneConfig("ViT-B-32-quickgelu", pretrained=None)).eval()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub, "snapshot_download", _nothing_cached)


def _nothing_cached(*args, local_files_only, **kwargs):
    assert local_files_only, "asked for the network"
    raise hub.EntryNotFoundError("not cached")


def random_frames(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


# --- features ---


@pytest.mark.parametrize("length", [24, 64])
@torch.no_grad()
def test_sentence_is_open_clips_own_at_any_length(tiny, length):
    tokens = tiny.tokenizer(CAPTIONS, context_length=length)
    words, sentence = tiny.encode_text(tokens, tokens > 0)
    expected = tiny.clip.encode_text(tiny.tokenizer(CAPTIONS))  # padded to the whole context
    assert words.shape == (2, length, 128)
    torch.testing.assert_close(sentence, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sentence, words[range(2), tokens.argmax(dim=1)])


@torch.no_grad()
def test_real_name_builds_with_random_weights_and_runs_a_batch(vit_b32):
    tokens = vit_b32.tokenizer(CAPTIONS, context_length=32)
    words, sentence = vit_b32.encode_text(tokens, tokens > 0)
    frames = random_frames(2, 1, 3, 224, 224)
    features = vit_b32.encode_frames(frames)
    assert (words.shape, sentence.shape, features.shape) == ((2, 32, 512), (2, 512), (2, 1, 512))
    torch.testing.assert_close(
        sentence, vit_b32.clip.encode_text(vit_b32.tokenizer(CAPTIONS)), atol=1e-4, rtol=1e-4
    )
    assert (vit_b32.image_size, vit_b32.width, vit_b32.context_length) == (224, 512, 77)


@torch.no_grad()
def test_what_follows_eot_reaches_no_feature_up_to_it(tiny):
    tokens = tiny.tokenizer(CAPTIONS, context_length=32)
    changed = torch.where(tokens > 0, tokens, torch.randint(1, 1000, tokens.shape))
    words, sentence = tiny.encode_text(tokens, tokens > 0)
    other_words, other_sentence = tiny.encode_text(changed, tokens > 0)
    torch.testing.assert_close(sentence, other_sentence)
    torch.testing.assert_close(words[tokens > 0], other_words[tokens > 0])


@torch.no_grad()
def test_frames_are_preprocessed_as_open_clip_does(tiny):
    frames = random_frames(2, 3, 3, 64, 64)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**tiny.clip.visual.preprocess_cfg), is_train=False
    )
    features = tiny.encode_frames(frames)
    for video in range(2):
        for index in range(3):
            image = transform(Image.fromarray(frames[video, index].permute(1, 2, 0).numpy()))
            expected = tiny.clip.encode_image(image[None])[0]
            torch.testing.assert_close(features[video, index], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        tiny.encode_frames(tiny.normalise(frames)), features
    )  # float counts as normalised


def test_towers_are_told_apart_by_name_and_the_scale_is_the_models(tiny):
    names = {name for name, _ in tiny.named_parameters()}
    assert "clip.logit_scale" in names
    assert all(
        name.startswith(("clip.text.", "clip.visual.")) for name in names - {"clip.logit_scale"}
    )
    assert tiny.logit_scale is tiny.clip.logit_scale
    assert set(tiny.state_dict()) == names, "mean and std are no part of a checkpoint"


def test_wrong_lengths_and_sizes_are_refused(tiny):
    tokens = torch.ones(1, 65, dtype=torch.int64)
    with pytest.raises(ValueError, match="at most 64 tokens, got 65"):
        tiny.encode_text(tokens, tokens > 0)
    with pytest.raises(ValueError, match=r"\(3, 64, 64\).*got \(1, 3, 32, 64\)"):
        tiny.encode_frames(random_frames(1, 1, 3, 32, 64))


@torch.no_grad()
def test_a_tower_that_sees_its_padding_always_runs_at_its_whole_length(tiny):
    seeing = deepcopy(tiny.clip)
    seeing.text.attn_mask = None
    seeing = Backbone(seeing, tiny.tokenizer, "seeing").eval()
    tokens = tiny.tokenizer(CAPTIONS, context_length=32)
    words, sentence = seeing.encode_text(tokens, tokens > 0)
    assert words.shape == (2, 32, 128)
    expected = seeing.clip.encode_text(tiny.tokenizer(CAPTIONS))
    torch.testing.assert_close(sentence, expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_gives_no_features_of_words_is_refused_by_name():
    joint = open_clip.create_model("tvrkit-tiny")  # as OpenAI's, without a text tower of its own
    with pytest.raises(ValueError, match="backbone joint: expected an image and a text tower, got"):
        Backbone(joint, None, "joint")


# --- weights from files ---


@torch.no_grad()
def test_weights_by_path_in_both_layouts_of_open_clip(tiny, tmp_path):
    separate = {name: value.clone() for name, value in tiny.clip.state_dict().items()}
    joint = {
        name.removeprefix("text."): value for name, value in separate.items()
    }  # as OpenAI's CLIP has them
    save_file(separate, tmp_path / "separate.safetensors")
    torch.save(joint, tmp_path / "joint.pt")
    tokens = tiny.tokenizer(CAPTIONS)
    for file in ("separate.safetensors", "joint.pt"):
        again = create_backbone(BackboneConfig("tvrkit-tiny", str(tmp_path / file))).eval()
        torch.testing.assert_close(
            again.encode_text(tokens, tokens > 0), tiny.encode_text(tokens, tokens > 0)
        )
        assert (again.name, again.pretrained) == ("tvrkit-tiny", str(tmp_path / file))


@pytest.mark.parametrize(
    ("name", "tag", "beside", "expected"),
    [
        ("PE-Core-T-16-384", None, None, (0.5, "squash", "bilinear")),
        ("ViT-L-14", "laion2b_s32b_b82k", None, (0.5, "shortest", "bicubic")),
        ("ViT-L-14", None, (0.1, "squash", "bilinear"), (0.1, "squash", "bilinear")),
        # what stands beside it says nothing of the model
        ("ViT-L-14-quickgelu", None, (0.1, "squash", "bicubic"), (0.1, "squash", "bicubic")),
    ],
)
def test_preprocessing_follows_weights_that_are_given_as_a_path(
    name, tag, beside, expected, tmp_path
):
    file = save_random(name, tmp_path)
    if beside is not None:
        save_facts(tmp_path / "open_clip_config.json", *beside)
    made = build(name, tmp_path, file, tag)
    found = made.preprocessing
    assert (found.mean[0], found.resize, found.interpolation) == expected
    assert made.mean[0].item() == pytest.approx(expected[0])


ONES = {"mean": [1, 1, 1], "std": [1, 1, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object"),
        ({}, "mean: Field required"),
        ({"preprocess_cfg": []}, "preprocess_cfg: at the top: Input should be a valid dict"),
        ({"preprocess_cfg": {"std": [1, 1, 1]}}, "mean: Field required"),
        ({"preprocess_cfg": ONES | {"mean": 1}}, "preprocess_cfg.mean: Input should be"),
        ({"preprocess_cfg": ONES | {"mean": [1]}}, "preprocess_cfg.mean.1: Field required"),
        ({"preprocess_cfg": ONES | {"interpolation": "nearest"}}, "'bicubic' or 'bilinear', got"),
        ({"preprocess_cfg": ONES, "model_cfg": {"quick_gelu": True}}, "use ViT-B-32-quickgelu"),
    ],
)
def test_what_stands_beside_weights_is_read_strictly(content, message, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not read")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"open_clip_config.json.*{message}"):
        build("ViT-B-32", tmp_path, str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (None, "expected open_clip_config.json beside it, .*one of openai, laion400m_e31"),
        ("laion", "unknown tag of ViT-L-14 'laion': expected one of"),
        ("openai", "ViT-L-14: openai was trained with another GELU: use ViT-L-14-quickgelu"),
    ],
)
def test_a_path_of_unknown_preprocessing_is_refused(tag, message, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match=message):
        build("ViT-L-14", tmp_path, str(tmp_path / "w.safetensors"), tag)


def save_random(name, folder):
    weights = build(name, folder).clip.state_dict()
    save_file({key: value.clone() for key, value in weights.items()}, folder / "w.safetensors")
    return str(folder / "w.safetensors")


def test_weights_of_another_model_half_a_file_and_code_are_refused(tiny, tmp_path):
    weights = {name: value.clone() for name, value in tiny.clip.state_dict().items()}
    del weights["text.ln_final.weight"]
    save_file(weights, tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes(
        (tmp_path / "other.safetensors").read_bytes()[:1000]
    )
    torch.save({"state_dict": Path}, tmp_path / "code.pt")
    for file in ("other.safetensors", "half.safetensors", "code.pt"):
        with pytest.raises(ValueError, match=f"{file}: expected weights of tvrkit-tiny"):
            create_backbone(BackboneConfig("tvrkit-tiny", str(tmp_path / file)))
    save_file(
        {f"backbone.clip.{key}": weights[key] for key in weights}, tmp_path / "run.safetensors"
    )
    came = (
        'got RuntimeError: Unexpected key.*"backbone.clip.*: name the model they are of; a trained'
    )
    with pytest.raises(ValueError, match=came):
        create_backbone(BackboneConfig("tvrkit-tiny", str(tmp_path / "run.safetensors")))


# --- what cannot be had ---


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        (
            "ViT-B/32",
            None,
            "unknown backbone 'ViT-B/32': expected one of .* more; near it: ViT-B-32",
        ),
        (
            "ViT-B-32-quickgelu",
            "tvrkit",
            "unknown weights 'tvrkit' of ViT-B-32-quickgelu: .*openai, laion400m_e31",
        ),
        (
            "tvrkit-tiny",
            "openai",
            "unknown weights 'openai' of tvrkit-tiny: expected a path, null, or tvrkit",
        ),
        ("ViT-B-32", "openai", "trained with another GELU: use ViT-B-32-quickgelu"),
    ],
)
def test_unknown_names_list_what_there_is(name, pretrained, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(BackboneConfig(name, pretrained))


def test_preprocessing_is_not_asked_for_where_the_tag_has_its_own():
    with pytest.raises(ValueError, match="expected null, as openai has its own, got laion2b"):
        create_backbone(BackboneConfig("ViT-B-32-quickgelu", "openai", "laion2b_s34b_b79k"))


def test_missing_weights_name_the_file_and_where_to_put_it(offline, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: no such weights file"):
        create_backbone(BackboneConfig("tvrkit-tiny", str(tmp_path / "nowhere.safetensors")))
    with pytest.raises(
        FileNotFoundError,
        match=r"fetch https://\S+openai/resolve/main/open_clip_model\.safetensors: .*\.pretrained",
    ):
        create_backbone(BackboneConfig("ViT-B-32-quickgelu", "openai"))
    with pytest.raises(
        FileNotFoundError,
        match=r"config.json of xlm-roberta-base .* copy models--xlm-roberta-base to",
    ):
        create_backbone(BackboneConfig("xlm-roberta-base-ViT-B-32", None))
    moved = BACKBONES["tvrkit-tiny"]._replace(weights=tmp_path / "gone.safetensors")
    monkeypatch.setitem(BACKBONES, "tvrkit-tiny", moved)
    with pytest.raises(
        FileNotFoundError,
        match=r"gone\.safetensors is missing: `tvrkit backbone pretrain` makes it",
    ):
        create_backbone(BackboneConfig("tvrkit-tiny", "tvrkit"))


# --- text towers of transformers ---


@pytest.fixture
def bert(tmp_path) -> Backbone:
    """A small Chinese BERT tower from local files, with open_clip's linear projection."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一个红色的小圆在左边"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    ).save_pretrained(folder)
    architecture = json.loads(BACKBONES["tvrkit-tiny"].config.read_text())
    architecture["text_cfg"] = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
    }
    config = tmp_path / "tvrkit-test-bert.json"
    config.write_text(json.dumps(architecture), encoding="utf-8")
    open_clip.add_model_config(config)
    return create_backbone(BackboneConfig("tvrkit-test-bert", None)).eval()


@torch.no_grad()
def test_transformers_tower_gives_words_and_sentence_through_the_same_code(bert):
    tokens = bert.tokenizer([CAPTIONS[1], "圆"], context_length=16)
    mask = tokens > 0
    words, sentence = bert.encode_text(tokens, mask)
    assert (words.shape, sentence.shape) == ((2, 16, 128), (2, 128))
    torch.testing.assert_close(sentence, bert.clip.encode_text(tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(words[:, 0], sentence)  # this tower pools [CLS]
    shorter, _ = bert.encode_text(tokens[1:, :3], mask[1:, :3])
    torch.testing.assert_close(words[1:, :3], shorter, atol=1e-5, rtol=1e-5)  # padding is masked
    assert bert.is_hf


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"\x80\x02N.", b"x" * 999])
def test_a_file_that_holds_no_weights_is_one_line(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt: expected weights of tvrkit-tiny") as caught:
        create_backbone(BackboneConfig(pretrained=str(path)))
    assert "\n" not in str(caught.value)


def test_weights_that_are_nan_are_refused(tmp_path):
    path, clip = tmp_path / "a.pt", create_backbone(BackboneConfig(pretrained=None)).clip
    torch.save(clip.state_dict() | {"logit_scale": torch.tensor(torch.nan)}, path)
    with pytest.raises(ValueError, match=r"a\.pt: expected finite weights, got NaN"):
        create_backbone(BackboneConfig(pretrained=str(path)))


def test_a_model_of_ones_own_is_registered_by_its_file(tmp_path):
    """As CONTRIBUTING says; one whose words are not CLIP's says so when it reads one."""
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    small = {"width": 64, "layers": 1}
    config["vision_cfg"] |= {"image_size": 32, "patch_size": 16, **small}
    for name, words in (("mine", config["text_cfg"]["vocab_size"]), ("mine-fewer", 600)):
        config["text_cfg"] |= {"vocab_size": words, "heads": 1, **small}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    backbone = create_backbone(BackboneConfig("mine", pretrained=None))
    tokens = backbone.tokenizer(["a red circle"])
    assert backbone.encode_text(tokens, tokens > 0)[1].shape == (1, 512)
    fewer = create_backbone(BackboneConfig("mine-fewer", pretrained=None))
    with pytest.raises(
        ValueError, match="mine-fewer: expected tokens of its vocabulary, got token"
    ):
        fewer.encode_text(tokens, tokens > 0)
