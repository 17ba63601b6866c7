"""What a step costs: on a CPU the whole report at tiny size, and estimates against counts."""

import json
from dataclasses import replace

import pytest
import torch

from tvrkit.recipes import load_recipe
from tvrkit.training import bench
from tvrkit.training.large_batch import gradient
from tvrkit.training.runs import build_method

SMALL = ["backbone.pretrained=null", "data.max_frames=2", "train.batch_size=2"]


def test_the_report_holds_every_measure(tmp_path, monkeypatch):
    """On a CPU here: no GPU was at hand. `tvrkit bench gpu` makes it on one."""
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr(bench, "PRODUCT", 64)
    out = tmp_path / "report.json"
    small = [*SMALL, "train.chunk_size=1"]
    found = bench.report(out, "cpu", ["clip4clip_shapes"], small)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    step = found["steps"]["clip4clip_shapes"]
    assert step["clips_per_second"] == pytest.approx(2000 / step["step_ms"])
    assert step["share_of_peak"] > 0
    assert len(step["time_in"]) == bench.SHOWN
    assert 0 < sum(step["time_in"].values()) <= 1
    assert found["product_tflops"] > 0


@pytest.mark.parametrize("recipe", ["clip4clip_shapes", "glscl_shapes", "hmmc_pretrain_shapes"])
def test_needs_are_what_the_encoders_keep(recipe):
    """Counted on real tensors for the whole batch, where the estimate has two rows of none."""
    config = load_recipe(recipe, [*SMALL, "train.batch_size=6"])
    method = build_method(config).train()
    expected = bench.kept_bytes(method, method, config, 6) / 1e9
    found = bench.needs(config)
    assert found["activations"] == pytest.approx(expected, rel=0.02)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert found["weights, gradients and moments"] >= 16 * trained / 1e9


def test_chunks_and_precision_lower_the_needs():
    config = load_recipe("clip4clip_shapes", SMALL[:2])
    whole = bench.needs(config)["activations"]
    chunked = bench.needs(replace(config, train=replace(config.train, chunk_size=16)))
    half = bench.needs(replace(config, train=replace(config.train, precision="bf16")))
    assert chunked["activations"] == pytest.approx(whole / 4, rel=0.2)  # some of it is no row's
    assert half["activations"] == pytest.approx(0.6 * whole)


@pytest.mark.parametrize("recipe", ["clip4clip_shapes", "glscl_shapes", "hmmc_pretrain_shapes"])
def test_bf16_keeps_no_more_than_is_said(recipe):
    config = load_recipe(recipe, SMALL)
    method, kept = build_method(config).train(), []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            kept.append(
                bench.kept_bytes(method, method, config, 4)
                - bench.kept_bytes(method, method, config, 2)
            )
    assert 0.5 < kept[1] / kept[0] < 0.6


def test_what_is_not_trained_needs_its_weights():
    config = load_recipe("clip4clip_shapes", [*SMALL, "train.epochs=0"])
    size = sum(p.numel() for p in build_method(config).parameters())
    assert bench.needs(config) == {"weights": 4 * size / 1e9}


@pytest.mark.parametrize("option", ["recompute=blocks", "compile=default"])
def test_an_option_of_speed_or_memory_leaves_the_step_as_it_is(option, monkeypatch):
    """Compiled without a compiler: what is traced is run as it is."""
    real, seen = torch.compile, []

    def traced(function, mode):
        seen.append(mode)
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    losses, gradients = [], []
    for options in ([], [f"train.{option}"]):
        config = load_recipe("clip4clip_shapes", [*SMALL, *options])
        torch.manual_seed(0)
        method = build_method(config).train()
        batch = bench.random_batch(method, config, 3, torch.device("cpu"))
        losses.append(gradient(method, batch, config.train)[0]["loss"])
        gradients.append({name: p.grad for name, p in method.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert seen == (["default"] * 2 if "compile" in option else [])
