"""Checkpoints: round trips, refusals, and released formats. Released numbers are in the parity
table."""

import logging
from types import SimpleNamespace

import pytest
import torch
from open_clip import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import save_file

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models import checkpoints
from tvrkit.models.backbone import BACKBONES, Backbone
from tvrkit.models.glscl import GLSCL
from tvrkit.models.glscl import Settings as GLSCLSettings
from tvrkit.models.hmmc import HMMC, HMMCPretraining, PretrainingSettings
from tvrkit.models.hmmc import Settings as HMMCSettings

WIDTH = 64


class Tokenizer:
    vocab_size = 50
    encoder = {"*</w>": 7}  # noqa: RUF012

    def __call__(self, texts):
        return torch.tensor([[48, *map(len, text.split()), 49] for text in texts])


def make_backbone(name="small", seed=0):
    torch.manual_seed(seed)
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 10, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2}
    clip = checkpoints.CustomTextCLIP(WIDTH, vision, text, quick_gelu=True)
    clip.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return Backbone(clip, Tokenizer(), name)


def make_glscl(name="small", seed=0, **changes):
    settings = {"feedforward": 16, "decoder_layers": 2, "queries": 3, "temporal_layers": 2}
    return GLSCL(make_backbone(name, seed), GLSCLSettings(**(settings | changes))).eval()


def make_hmmc(name="small", seed=0, cls=HMMC, **changes):
    settings = {"temporal_layers": 2, "max_frames": 6}
    if cls is HMMCPretraining:
        small = {"projector_width": 8, "queue_size": 5, "frame_queue_size": 7}
        return cls(make_backbone(name, seed), PretrainingSettings(**settings, **small))
    return cls(make_backbone(name, seed), HMMCSettings(**(settings | changes))).eval()


def make_batch():
    random = torch.Generator().manual_seed(3)
    mask = torch.arange(10) < torch.tensor([[4], [10], [7]])
    tokens = torch.randint(1, 49, (3, 10), generator=random) * mask
    tokens[torch.arange(3), mask.sum(1) - 1] = 49
    frame_mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    rows = torch.arange(3)
    frames = torch.randn(3, 4, 3, 16, 16, generator=random)
    return TextVideoBatch(tokens, mask, mask.long(), frames, frame_mask, rows, rows)


@torch.no_grad()
def scores(method):
    batch = make_batch()
    return method.similarity(method.encode_text(batch), method.encode_video(batch))


# --- The kit's own
#  ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_glscl, make_hmmc])
def test_round_trip(make, tmp_path):
    path, method = tmp_path / "a.safetensors", make(seed=1)
    digest = checkpoints.save(method, path, SimpleNamespace(recipe="glscl_shapes"))
    other = checkpoints.load(make(seed=2), path)
    assert torch.equal(scores(other), scores(method))
    assert digest == checkpoints.sha256(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    with safe_open(path, "pt") as file:
        assert file.metadata()["backbone"] == "small"
        assert file.metadata()["recipe"] == "glscl_shapes"


def test_momentum_encoders_and_queues_are_saved(tmp_path):
    path, method = tmp_path / "a.safetensors", make_hmmc(cls=HMMCPretraining, seed=1)
    method.queues["video"].push(torch.randn(3, WIDTH))
    checkpoints.save(method, path)
    other = checkpoints.load(make_hmmc(cls=HMMCPretraining, seed=2), path)
    assert all(
        torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items()
    )
    assert other.queues["video"].pointer == 3


def test_finetuning_starts_from_pretraining(tmp_path):
    path, pretrained = tmp_path / "a.safetensors", make_hmmc(cls=HMMCPretraining, seed=1)
    checkpoints.save(pretrained, path)
    method = make_hmmc(seed=2)
    unused = checkpoints.start_from(method, path)
    assert torch.equal(scores(method), scores(pretrained.eval()))
    assert {key.split(".")[0] for key in unused} == {
        "slow",
        "queues",
        "projector",
        "predictor",
        "word_head",
    }
    with pytest.raises(ValueError, match="expected weights of backbone other, got small"):
        checkpoints.start_from(make_hmmc("other"), path)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (make_glscl("another"), "expected weights of backbone another, got small"),
        (make_hmmc(), "expected weights of method hmmc, got glscl"),
        (make_glscl(queries=5), r"queries\.both\.weight: expected shape \(5, 64\), got \(3, 64\)"),
        (make_glscl(shared_queries=False), r"missing keys \(2\): queries"),
        (make_glscl(decoder_layers=1), "expected no further keys"),
    ],
)
def test_load_refuses_what_does_not_fit(method, message, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoints.save(make_glscl(), path)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        checkpoints.load(method, path)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_weights_of_another_tokenizer_are_refused(tmp_path):
    """The embedded backbone made anew keeps name and shapes, but its words are other numbers."""
    path, method = tmp_path / "a.safetensors", make_glscl()
    method.backbone.tokenizer = SimpleTokenizer(
        str(BACKBONES["tvrkit-tiny"].merges), context_length=10
    )
    checkpoints.save(method, path)
    checkpoints.load(method, path)
    method.backbone.tokenizer = SimpleTokenizer(context_length=10)
    for read in (checkpoints.load, checkpoints.start_from):
        with pytest.raises(ValueError, match="expected weights of tokenizer"):
            read(method, path)


def test_load_refuses_broken_and_missing_files(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        checkpoints.load(make_glscl(), path)
    checkpoints.save(make_glscl(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        checkpoints.load(make_glscl(), path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoints.save(make_glscl(), path)
    before = path.read_bytes()

    def fail(state, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(make_glscl(seed=1), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# --- Released formats
#  ---------------------------------------------------------------------------------------

GLSCL_NAMES = {
    "backbone.clip.text.": "clip.",
    "backbone.clip.": "clip.",
    "temporal.frame": "frame",
    "temporal.": "transformerClip.",
    "queries.both.weight": "spatial_queries",
    "decoder.both.": "transformer_decoder_noun.",
    "queries.text.weight": "noun_queries",
    "queries.video.weight": "spatial_queries",
    "decoder.text.": "transformer_decoder_noun.",
    "decoder.video.": "transformer_decoder_spatial.",
}
HMMC_NAMES = {
    "backbone.clip.text.": "text_encoder.",
    "backbone.clip.visual.": "visual_encoder.visual.",
    "temporal.frame": "visual_encoder.frame",
    "temporal.": "visual_encoder.temporal_transformer.",
}


def released(method, names):
    """The weights under released names."""
    state = {}
    for key, value in method.state_dict().items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix:
            state[names[prefix] + key.removeprefix(prefix)] = value
    return state


@pytest.mark.parametrize("shared", [True, False])
def test_released_glscl_format(shared, caplog):
    method = make_glscl(
        shared_queries=shared, shared_decoder=shared, fidelity="released", temperature=5.0
    )
    state = released(method, GLSCL_NAMES) | {"weight_fc.0.bias": torch.zeros(3)}
    with caplog.at_level(logging.INFO):
        loaded = checkpoints.load_official(
            "glscl", state, shared_queries=shared, shared_decoder=shared, temperature=5.0
        )
    assert not loaded.training
    torch.testing.assert_close(scores(loaded), scores(method))
    assert loaded.settings == method.settings
    assert "unused keys (1): weight_fc.0.bias" in caplog.text


def test_released_hmmc_format_from_every_kind_of_file(tmp_path):
    method = make_hmmc(fidelity="released", top_frames=3)
    method.temporal = checkpoints.TemporalTransformer(WIDTH, 2, 8, 6)
    state = released(method, HMMC_NAMES)
    torch.save(state, tmp_path / "pytorch_model.bin.4")
    halves = [dict(list(state.items())[part::2]) for part in (0, 1)]
    shards = [tmp_path / f"{number}.safetensors" for number in (0, 1)]
    for shard, half in zip(shards, halves, strict=True):
        save_file(half, shard)
    for source in (state, tmp_path / "pytorch_model.bin.4", shards):
        loaded = checkpoints.load_official("hmmc", source, top_frames=3)
        torch.testing.assert_close(scores(loaded), scores(method))
        assert loaded.backbone.logit_scale.exp().item() == pytest.approx(100)


def test_released_chinese_format():
    transformers = pytest.importorskip(
        "transformers", reason="the Chinese tower is transformers' BERT"
    )
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=96, max_position_embeddings=16)
    bert, proj = transformers.BertModel(config).eval(), torch.nn.Linear(64, WIDTH)
    state = {
        key: value
        for key, value in released(make_hmmc(), HMMC_NAMES).items()
        if not key.startswith("text_encoder.")
    }
    state |= {
        f"text_encoder.chinese_encoder.{key}": value for key, value in bert.state_dict().items()
    }
    state |= {f"text_encoder.text_proj.{key}": value for key, value in proj.state_dict().items()}
    loaded, batch = checkpoints.load_official("hmmc", state, text_heads=4), make_batch()
    with torch.no_grad():
        output = bert(batch.tokens, batch.token_mask.long())
        text = loaded.encode_text(batch)
        torch.testing.assert_close(text.sentence, proj(output.pooler_output))
        torch.testing.assert_close(text.words, proj(output.last_hidden_state))
    assert scores(loaded).shape == (3, 3)


def test_converted_checkpoints_are_the_kits(tmp_path):
    state = released(make_hmmc(), HMMC_NAMES)
    torch.save(state, tmp_path / "released.bin")
    checkpoints.convert(
        "hmmc", tmp_path / "released.bin", tmp_path / "kit.safetensors", top_frames=3
    )
    loaded = checkpoints.load_official("hmmc", state, top_frames=3)
    expected = scores(loaded)
    torch.nn.init.zeros_(loaded.temporal.frame_position_embeddings.weight)
    assert torch.equal(scores(checkpoints.load(loaded, tmp_path / "kit.safetensors")), expected)


def test_real_sizes_get_their_open_clip_name():
    with torch.device("meta"):  # sizes only
        vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
        clip = checkpoints.CustomTextCLIP(512, vision, text)
    state = {f"backbone.clip.{key}": value for key, value in clip.state_dict().items()}
    sizes = checkpoints._sizes(state) | {
        "quick_gelu": True,
        "text_cfg": checkpoints._text_sizes(state),
    }
    assert sizes == checkpoints.open_clip.get_model_config("ViT-B-32-quickgelu")


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("spatial_queries", "spatial_queries is missing"),
        ("clip.visual.proj", "clip.visual.proj is missing"),
        ("clip.ln_final.bias", r"missing keys \(1\)"),
    ],
)
def test_missing_released_keys_are_an_error(drop, message):
    state = released(make_glscl(), GLSCL_NAMES)
    del state[drop]
    with pytest.raises(ValueError, match=message):
        checkpoints.load_official("glscl", state)


def test_load_official_refuses(tmp_path):
    state = released(make_hmmc(), HMMC_NAMES)
    with pytest.raises(ValueError, match="expected one of glscl, hmmc"):
        checkpoints.load_official("dmae", state)
    with pytest.raises(ValueError, match=r"unknown hmmc setting 'top_frame'.*top_frames"):
        checkpoints.load_official("hmmc", state, top_frame=3)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        checkpoints.load_official("hmmc", tmp_path / "none.bin")
    (tmp_path / "broken.bin").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="expected a file of plain tensors"):
        checkpoints.load_official("hmmc", tmp_path / "broken.bin")
    torch.save({"weights": Tokenizer()}, tmp_path / "pickle.bin")  # would run code
    with pytest.raises(ValueError, match="expected a file of plain tensors"):
        checkpoints.load_official("hmmc", tmp_path / "pickle.bin")
