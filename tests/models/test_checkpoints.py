"""Checkpoints of the kit's own: round trips and refusals."""

from types import SimpleNamespace

import pytest
import torch
from open_clip import SimpleTokenizer
from safetensors import safe_open

from tvrkit import files
from tvrkit.models import checkpoints
from tvrkit.models.backbone import BACKBONES
from tvrkit.models.hmmc_pretraining import HMMCPretraining

from .small_methods import WIDTH, make_backbone, make_glscl, make_hmmc, scores


@pytest.mark.parametrize("make", [make_glscl, make_hmmc])
def test_round_trip(make, tmp_path):
    path, method = tmp_path / "a.safetensors", make(seed=1)
    digest = checkpoints.save(method, path, SimpleNamespace(recipe="glscl_shapes"))
    other = checkpoints.load(make(seed=2), path)
    assert torch.equal(scores(other), scores(method))
    assert digest == files.sha256(path)
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


def test_a_method_of_ones_own_is_named_by_its_module(tmp_path):
    class Mine(type(make_glscl())):
        pass

    path, mine = tmp_path / "a.safetensors", Mine(make_backbone(), make_glscl().settings)
    checkpoints.save(mine, path)
    checkpoints.load(mine, path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["method"] == f"{Mine.__module__}:{Mine.__qualname__}"
    with pytest.raises(ValueError, match=r"expected weights of method glscl, got .*:.*Mine"):
        checkpoints.load(make_glscl(), path)
