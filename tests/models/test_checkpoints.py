"""Checkpoints of the kit's own: round trips and refusals."""

import pickle
import re
import zipfile
from types import SimpleNamespace

import pytest
import torch
from open_clip import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tvrkit.models import checkpoints, weights
from tvrkit.models.backbone import BACKBONES
from tvrkit.models.hmmc_pretraining import HMMCPretraining

from .small_methods import WIDTH, make_backbone, make_glscl, make_hmmc, scores


@pytest.mark.parametrize("make", [make_glscl, make_hmmc])
def test_round_trip(make, tmp_path):
    path, method = tmp_path / "a.safetensors", make(seed=1)
    digest = checkpoints.save(method, path, SimpleNamespace(recipe="glscl_shapes"))
    other = checkpoints.load(make(seed=2), path)
    assert torch.equal(scores(other), scores(method))
    assert digest == checkpoints.digest(other.state_dict())
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
    unused = checkpoints.fill(method, checkpoints.read_tensors(path)[0], "a")
    assert torch.equal(scores(method), scores(pretrained.eval()))
    assert {key.split(".")[0] for key in unused} == {
        "slow",
        "queues",
        "projector",
        "predictor",
        "word_head",
    }
    with pytest.raises(ValueError, match="expected weights of backbone other, got small"):
        weights.start(lambda _: make_hmmc("other"), path)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (make_glscl("another"), "expected weights of backbone another, got small: name theirs in"),
        (make_hmmc(), "expected weights of method hmmc, got glscl"),
        (make_glscl(queries=5), r"queries\.both\.weight: expected shape \(5, 64\), got \(3, 64\)"),
        (make_glscl(shared_queries=False), "got 2 missing keys: queries"),
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
    for read in (checkpoints.load, lambda method, path: weights.start(lambda _: method, path)):
        with pytest.raises(ValueError, match="expected weights of tokenizer"):
            read(method, path)


def test_load_refuses_broken_and_missing_files(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        checkpoints.load(make_glscl(), path)
    checkpoints.save(make_glscl(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="expected a file of plain tensors"):
        checkpoints.load(make_glscl(), path)


def test_what_torch_refuses_is_named_and_its_advice_is_not_passed_on(tmp_path):
    torch.save({"a": SimpleNamespace()}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"plain tensors, got UnpicklingError: Unsup.*Simple"
    ) as said:
        checkpoints.read_tensors(tmp_path / "a.pt")
    assert not {"add_safe_globals", "weights_only"} & {*re.findall(r"\w+", str(said.value))}


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


def test_equal_weights_have_equal_digests_and_others_have_not():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(6.0).view(3, 2).reshape(2, 3).clone()}
    assert checkpoints.digest(state) == checkpoints.digest(same)
    others = [
        state | {"a": state["a"].reshape(3, 2)},
        state | {"a": state["a"].int()},
        state | {"a": state["a"].nextafter(torch.tensor(9.0))},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
    ]
    digests = {checkpoints.digest(other) for other in [state, *others]}
    assert len(digests) == 1 + len(others)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoints.save(make_glscl(), path)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1  # the lowest bit of some weight
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its weights are not those it was saved with"):
        checkpoints.load(make_glscl(), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.fill_(torch.nan), "expected finite weights, got NaN"),
        (lambda tensor: tensor.to(torch.complex64), "expected a dense tensor of real numbers"),
        (lambda tensor: tensor.int(), r"expected torch.float32, got torch.int32"),
    ],
    ids=["NaN", "complex", "integers"],
)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, change, message):
    path, method = tmp_path / "a.safetensors", make_glscl()
    checkpoints.save(method, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]  # as one of an earlier version
    state = load_file(path)
    key = next(iter(state))
    save_file(state | {key: change(state[key])}, path, metadata)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(method, path)


def packed(path):
    """A checkpoint of torch.save with its zip entries compressed: 40 MB of zeros in 40 kB."""
    torch.save({"a": torch.zeros(10**7)}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))


def tuples_without_end(path, whole=True):
    """{((..., ...), (..., ...)): 1} of 2^50 empty tuples in 500 bytes: a key that Python would hash
    for years, in a file of torch or one of torch before 1.6."""
    pairs = b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(1, 51))
    data = b"\x80\x02}()q\x01" + pairs + b"K\x01u."
    if not whole:
        about = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
        parts = [pickle.dumps(each, 2) for each in about]
        path.write_bytes(b"".join([*parts, data, pickle.dumps([], 2)]))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


HOSTILE = {
    "tuples of tuples": (tuples_without_end, "more than 16,777,216 items in each other at byte"),
    "tuples of tuples, before torch 1.6": (
        lambda path: tuples_without_end(path, whole=False),
        "more than 16,777,216 items in each other at byte",
    ),
    "a bomb": (packed, r"expected at most [\d,]+ bytes unpacked, got 40,"),
    "one number of any shape": (
        lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path),
        "a dense tensor",
    ),
    "sparse": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "a dense tensor"),
    "a list": (lambda path: torch.save([1], path), "expected a state dict, got list"),
    "numbers": (lambda path: torch.save({"a": 1}, path), "a dense tensor"),
    "numbered": (lambda path: torch.save({1: torch.zeros(2)}, path), "a dense tensor"),
    "nothing": (lambda path: path.write_bytes(b""), "expected a file of plain tensors"),
    "half": (
        lambda path: (
            torch.save({"a": torch.zeros(99)}, path),
            path.write_bytes(path.read_bytes()[:500]),
        ),
        "expected a file of plain tensors",
    ),
}


def test_a_flipped_bit_in_a_file_of_torch_is_noticed(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged at 'a/data/0': its checksum differs"):
        checkpoints.read_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_optimiser_beside_the_weights_is_no_bomb(tmp_path, zipped):
    """Its groups share tuples, its states are nested."""
    layer = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW([{"params": [p]} for p in layer.parameters()])
    layer(torch.zeros(2, 4)).sum().backward()
    optimiser.step()
    whole = {"model": layer.state_dict(), "optimiser": optimiser.state_dict(), "at": (1, (2, 3))}
    torch.save(whole, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert checkpoints.read_tensors(tmp_path / "a.pth")[0].keys() == {"weight", "bias"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, name):
    make, message = HOSTILE[name]
    make(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.read_tensors(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
