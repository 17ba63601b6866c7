"""Optimisers, parameter groups and schedule by their meaning; released trajectories are in the
parity table."""

import math

import pytest
import torch
from torch import nn

from tvrkit.models.method import Method
from tvrkit.settings import TrainConfig
from tvrkit.training.optim import BertAdam, build_optimizer, parameter_groups, schedule


def test_bertadam_first_step_moves_nothing_and_resumes():
    torch.manual_seed(0)
    straight, resumed = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, other = (BertAdam([p], 0.1, 0.2, 10) for p in (straight, resumed))
    gradients = torch.randn(6, 3)
    for step, gradient in enumerate(gradients):
        if step == 3:
            saved = other.state_dict()
            other = BertAdam([resumed], 0.1, 0.2, 10)
            other.load_state_dict(saved)
        for parameter, one in ((straight, optimizer), (resumed, other)):
            parameter.grad = gradient.clone()
            one.step()
        if step == 0:
            assert torch.equal(straight.data, torch.ones(3))
    assert torch.equal(straight, resumed)
    assert not torch.equal(straight.data, torch.ones(3))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"schedule": "square"}, "cosine"),
        ({"warmup": 1.5}, "1.5"),
        ({"total_steps": 0}, "got 0.1, 0"),
    ],
)
def test_bertadam_refuses(kwargs, message):
    arguments = {"lr": 0.1, "warmup": 0.1, "total_steps": 10} | kwargs
    with pytest.raises(ValueError, match=message):
        BertAdam([nn.Parameter(torch.ones(1))], **arguments)


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)
        self.token_embedding = nn.Embedding(5, 4)
        self.positional_embedding = nn.Parameter(torch.zeros(3, 4))
        self.class_embedding = nn.Parameter(torch.zeros(4))


@pytest.fixture
def method():
    backbone = nn.Module()
    backbone.clip = nn.Module()
    backbone.clip.text, backbone.clip.visual = Tower(), Tower()
    backbone.logit_scale = nn.Parameter(torch.tensor(4.6))
    made = Method(backbone, None)
    made.temporal, made.frozen = Tower(), nn.Linear(4, 4).requires_grad_(False)
    return made


def names_by_group(method, train):
    names = {id(p): name for name, p in method.named_parameters()}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(method, train)}


def test_groups_cover_every_trainable_parameter_once(method):
    train = TrainConfig(lr=1e-3, clip_lr=1e-6, text_lr=1e-5)
    groups = parameter_groups(method, train)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert {g["name"].removesuffix("-no-decay"): g["lr"] for g in groups} == {
        "new": 1e-3,
        "backbone": 1e-6,
        "text": 1e-5,
    }
    assert all((g["weight_decay"] == 0.0) == g["name"].endswith("-no-decay") for g in groups)


def test_decay_reaches_matrices_only(method):
    groups = names_by_group(method, TrainConfig())
    assert groups["backbone"] == {"backbone.clip.visual.fc.weight"}
    assert groups["text"] == {"backbone.clip.text.fc.weight"}
    assert groups["new"] == {"temporal.fc.weight"}


def test_layer_norms_over_several_dimensions_do_not_decay(method):
    method.norm = nn.LayerNorm([3, 4])
    assert "norm.weight" in names_by_group(method, TrainConfig())["new-no-decay"]


def test_decay_all_leaves_out_biases_only(method):
    groups = names_by_group(method, TrainConfig(decay_all=True))
    kept = set().union(*(names for key, names in groups.items() if key.endswith("-no-decay")))
    assert kept == {
        name for name, p in method.named_parameters() if name.endswith("bias") and p.requires_grad
    }
    assert {"backbone.logit_scale", "backbone.clip.visual.ln_1.weight"} <= groups["backbone"]


def test_text_rate_defaults_to_the_backbones(method):
    assert {g["lr"] for g in parameter_groups(method, TrainConfig(clip_lr=3e-6, lr=3e-6))} == {3e-6}


def test_schedule_warms_up_then_falls_to_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    scheduler = schedule(optimizer, 20, 0.1)
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [1.0, 2.0] + [1.0 + math.cos(math.pi * k / 18) for k in range(18)] + [0.0] * 5
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_short_schedules_move(total_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule(optimizer, total_steps, 0.1)
    assert optimizer.param_groups[0]["lr"] > 0


@pytest.mark.parametrize(("name", "scheduled"), [("adamw", True), ("bertadam", False)])
def test_build_optimizer_trains(method, name, scheduled):
    optimizer, scheduler = build_optimizer(
        method, TrainConfig(optimizer=name, clip_lr=1e-2, lr=1e-2), 5
    )
    assert (scheduler is not None) == scheduled
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        sum((p - 1).square().sum() for p in method.parameters() if p.requires_grad).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    unmoved = {key for key, p in method.named_parameters() if torch.equal(p, before[key])}
    gains = {
        f"{tower}.ln_1.weight"
        for tower in ("backbone.clip.text", "backbone.clip.visual", "temporal")
    }
    assert unmoved <= gains | {"frozen.weight", "frozen.bias"}  # gains start at the optimum, 1
