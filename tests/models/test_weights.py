"""Checkpoint files are recognised by what they hold, whoever wrote them; others are refused."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tvrkit.models import checkpoints, weights
from tvrkit.models.clip4clip import CLIP4Clip
from tvrkit.models.dmae import DMAE

from .small_methods import make_backbone, make_glscl, make_hmmc, scores
from .test_official import GLSCL_NAMES, HMMC_NAMES, released

DMAE_NAMES = GLSCL_NAMES | {
    "word_weight.": "text_weight_fc.",
    "frame_weight.": "video_weight_fc.",
    "partial_order.word_predictor.": "v2t_linear_xwp.",
    "partial_order.frame_predictor.": "t2v_linear_xwp.",
}


def make_dmae(seed=0, **changes):
    settings = {"max_words": 10, "max_frames": 4, "temporal_layers": 2, "fidelity": "released"}
    return DMAE(make_backbone(seed=seed), DMAE.Settings(**settings | changes)).eval()


def make_clip4clip(seed=0, **changes):
    return CLIP4Clip(make_backbone(seed=seed), CLIP4Clip.Settings(**changes)).eval()


MADE = {
    "glscl": (lambda seed: make_glscl(seed=seed, fidelity="released"), GLSCL_NAMES),
    "hmmc": (lambda seed: make_hmmc(seed=seed, fidelity="released"), HMMC_NAMES),
    "dmae": (make_dmae, DMAE_NAMES),
    "clip4clip": (lambda seed: make_clip4clip(seed, layers=2, fidelity="released"), GLSCL_NAMES),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("name", MADE)
def test_an_authors_file_is_recognised_and_fills_a_method_of_the_same_sizes(
    name, wrapper, tmp_path
):
    make, names = MADE[name]
    method, other = make(seed=0), make(seed=1)
    state = {f"{wrapper}{key}": value for key, value in released(method, names).items()}
    torch.save({"model": state} if wrapper else state, tmp_path / "pytorch_model.bin.4")
    _, origin = weights.start(lambda _: other, tmp_path / "pytorch_model.bin.4")
    assert (origin.format, origin.method) == ("released", name)
    assert (origin.preprocessing["mean"], origin.preprocessing["resize_mode"]) == (
        open_clip.OPENAI_DATASET_MEAN,
        "shortest",
    )
    torch.testing.assert_close(scores(other), scores(method))
    shown = {key: getattr(method.settings, key) for key in origin.settings if "heads" not in key}
    assert shown == {key: origin.settings[key] for key in shown}
    assert origin.card["sha256"] == weights.describe(origin.path).sha256


def test_dmae_without_tpm_cl_and_with_more_frame_positions(tmp_path):
    method, other = make_dmae(partial_order=[]), make_dmae(seed=1, partial_order=[])
    state = released(method, DMAE_NAMES)
    positions = state["frame_position_embeddings.weight"]
    state["frame_position_embeddings.weight"] = torch.cat([positions, torch.randn(73, 64)])
    save_file(state, tmp_path / "dmae.safetensors")
    _, origin = weights.start(lambda _: other, tmp_path / "dmae.safetensors")
    assert origin.settings["partial_order"] == []
    torch.testing.assert_close(scores(other), scores(method))


def test_the_kits_own_file_tells_its_method_and_settings(tmp_path):
    method = make_glscl(queries=4)
    sha256 = checkpoints.save(method, tmp_path / "kit.safetensors")
    origin = weights.describe(tmp_path / "kit.safetensors")
    assert origin[1:4] == (sha256, "tvrkit", "glscl")
    assert origin.settings["queries"] == 4
    other = make_glscl(seed=1, queries=4)
    weights.start(lambda _: other, tmp_path / "kit.safetensors")
    torch.testing.assert_close(scores(other), scores(method))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"visual.conv1.weight": torch.zeros(1)}, "expected weights of a method.*got visual.conv1"),
        ({"clip.visual.proj": torch.zeros(1), "cross.x": torch.zeros(1)}, "got cross .tightTransf"),
        ({"x.text_weight_fc.weight": torch.zeros(1)}, r"expected CLIP's towers.*finding 12"),
        ([torch.zeros(1)], "expected a state dict, got list"),
        ({"state": {"nested": make_clip4clip}}, "expected a file of plain tensors"),
    ],
)
def test_what_is_no_checkpoint_of_a_method_is_said(state, message, tmp_path):
    torch.save(state, tmp_path / "some.pt")
    with pytest.raises(ValueError, match=message):
        weights.describe(tmp_path / "some.pt")
    with pytest.raises(FileNotFoundError, match=r"none.pt: no such checkpoint"):
        weights.describe(tmp_path / "none.pt")
