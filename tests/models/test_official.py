"""Released formats. Released numbers are in the parity table."""

import contextlib
import logging

import open_clip
import pytest
import torch
from open_clip import CustomTextCLIP
from safetensors.torch import save_file

from tvrkit.models import checkpoints, official
from tvrkit.models.temporal import TemporalTransformer

from .small_methods import WIDTH, Tokenizer, make_batch, make_glscl, make_hmmc, scores

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
        loaded = official.load_official(
            "glscl", state, shared_queries=shared, shared_decoder=shared, temperature=5.0
        )
    assert not loaded.training
    torch.testing.assert_close(scores(loaded), scores(method))
    assert loaded.settings == method.settings
    assert "unused keys (1): weight_fc.0.bias" in caplog.text


def test_released_hmmc_format_from_every_kind_of_file(tmp_path):
    method = make_hmmc(fidelity="released", top_frames=3)
    method.temporal = TemporalTransformer(WIDTH, 2, 8, 6)
    state = released(method, HMMC_NAMES)
    torch.save(state, tmp_path / "pytorch_model.bin.4")
    halves = [dict(list(state.items())[part::2]) for part in (0, 1)]
    shards = [tmp_path / f"{number}.safetensors" for number in (0, 1)]
    for shard, half in zip(shards, halves, strict=True):
        save_file(half, shard)
    for source in (state, tmp_path / "pytorch_model.bin.4", shards):
        loaded = official.load_official("hmmc", source, top_frames=3)
        torch.testing.assert_close(scores(loaded), scores(method))
        assert loaded.backbone.logit_scale.exp().item() == pytest.approx(100)


def chinese_state():
    """HMMC's Chinese format: the state dict, and the tower and projection in it."""
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
    return state, bert, proj


def test_released_chinese_format():
    state, bert, proj = chinese_state()
    loaded, batch = official.load_official("hmmc", state, text_heads=4), make_batch()
    with torch.no_grad():
        output = bert(batch.tokens, batch.token_mask.long())
        text = loaded.encode_text(batch)
        torch.testing.assert_close(text.sentence, proj(output.pooler_output))
        torch.testing.assert_close(text.words, proj(output.last_hidden_state))
    assert scores(loaded).shape == (3, 3)


def test_the_language_is_checked_against_the_tower_that_is_found():
    chinese, english = chinese_state()[0], released(make_hmmc(), HMMC_NAMES)
    for language, state in (("zh", chinese), ("en", english)):
        found = official.load_official("hmmc", state, language=language, text_heads=4)
        assert scores(found).shape == (3, 3)
    for language, state, tower in (("en", chinese, "zh"), ("zh", english, "en")):
        with pytest.raises(ValueError, match=f"expected a text tower of {language}, got {tower}"):
            official.load_official("hmmc", state, language=language)
    with pytest.raises(ValueError, match="unknown language 'chinese': expected one of en, zh"):
        official.load_official("hmmc", english, language="chinese")
    glscl = released(make_glscl(), GLSCL_NAMES)
    with pytest.raises(ValueError, match=r"released glscl checkpoint: .* of zh, got en"):
        official.load_official("glscl", glscl, language="zh")


def test_converted_checkpoints_are_the_kits(tmp_path):
    state = released(make_hmmc(), HMMC_NAMES)
    torch.save(state, tmp_path / "released.bin")
    converted = official.load_official("hmmc", tmp_path / "released.bin", top_frames=3)
    checkpoints.save(converted, tmp_path / "kit.safetensors")
    loaded = official.load_official("hmmc", state, top_frames=3)
    expected = scores(loaded)
    torch.nn.init.zeros_(loaded.temporal.frame_position_embeddings.weight)
    assert torch.equal(scores(checkpoints.load(loaded, tmp_path / "kit.safetensors")), expected)


def test_real_sizes_get_their_open_clip_name():
    with torch.device("meta"):  # sizes only
        vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
        clip = CustomTextCLIP(512, vision, text)
    state = {f"clip.{k.removeprefix('text.')}": value for k, value in clip.state_dict().items()}
    config = official.clip_config(official.Released("clip4clip", state))
    assert config == open_clip.get_model_config("ViT-B-32-quickgelu")


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("spatial_queries", "expected spatial_queries, got none"),
        ("clip.visual.proj", "expected clip.visual.proj, got none"),
        ("clip.ln_final.bias", "expected clip.ln_final.bias, got none"),
    ],
)
def test_missing_released_keys_are_an_error(drop, message):
    state = released(make_glscl(), GLSCL_NAMES)
    del state[drop]
    with pytest.raises(ValueError, match=message):
        official.load_official("glscl", state)


def test_load_official_refuses(tmp_path):
    state = released(make_hmmc(), HMMC_NAMES)
    with pytest.raises(ValueError, match="expected one of clip4clip, dmae, glscl, hmmc"):
        official.load_official("dmea", state)
    with pytest.raises(ValueError, match=r"hmmc settings\.top_frame: .*top_frames"):
        official.load_official("hmmc", state, top_frame=3)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        official.load_official("hmmc", tmp_path / "none.bin")
    (tmp_path / "broken.bin").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="expected a file of plain tensors"):
        official.load_official("hmmc", tmp_path / "broken.bin")
    torch.save({"weights": Tokenizer()}, tmp_path / "pickle.bin")  # would run code
    with pytest.raises(ValueError, match="expected a file of plain tensors"):
        official.load_official("hmmc", tmp_path / "pickle.bin")


@pytest.mark.parametrize("make_shape", [torch.ravel, torch.sum, lambda t: t.ravel()[:0]])
@pytest.mark.parametrize(
    ("method", "make", "names"),
    [("glscl", make_glscl, GLSCL_NAMES), ("hmmc", make_hmmc, HMMC_NAMES)],
)
def test_wrong_shapes_are_one_line(method, make, names, make_shape):
    whole = released(make(), names)
    for key in list(whole)[::12]:
        with contextlib.suppress(ValueError):  # and nothing else
            official.load_official(method, whole | {key: make_shape(whole[key])})
