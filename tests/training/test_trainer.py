"""The training loop: resume, selection, rates, what a broken loss says."""

import dataclasses
import os
import signal
from contextlib import nullcontext

import pandas as pd
import pytest
import torch

from tests.training.toy import SETTINGS, Toy, batch_of, trainer
from tvrkit.data.batch import VideoFeatures
from tvrkit.training import resume


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.method.parameters()])


def test_the_loss_falls_and_every_step_is_in_the_history(tmp_path):
    made = trainer(dataclasses.replace(SETTINGS, epochs=30))
    state = made.fit(tmp_path, lambda state: {})
    losses_seen = [row["loss"] for row in state.history]
    assert len(losses_seen) == 30 * 3
    assert [row["epoch"] for row in state.curve] == list(range(1, 31))
    assert sum(losses_seen[-3:]) < 0.9 * sum(losses_seen[:3])


class Cut(Exception):
    """Stands for a kill: nothing after it runs."""


class CutShort(Toy):
    """A method that is killed in the step after `steps` of them."""

    steps = 1000

    def before_step(self):
        self.steps -= 1
        if self.steps < 0:
            raise Cut


def cut_short(folder, steps, **settings):
    made = trainer(dataclasses.replace(SETTINGS, save_every=2, **settings), CutShort)
    made.method.steps = steps
    with pytest.raises(Cut):
        made.fit(folder, lambda state: {"score": 1.0})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing interrupts, by optimiser: folder, weights and state."""
    made = {}
    for optimizer in ("adamw", "bertadam"):
        each = trainer(dataclasses.replace(SETTINGS, optimizer=optimizer))
        folder = tmp_path_factory.mktemp(optimizer)
        state = each.fit(folder, lambda state: {"score": 1.0})
        made[optimizer] = folder, weights(each), state
    return made


@pytest.mark.parametrize(
    ("steps", "optimizer"), [*((steps, "adamw") for steps in range(1, 9)), (5, "bertadam")]
)
def test_a_run_killed_after_any_step_ends_with_the_same_bits(tmp_path, whole, steps, optimizer):
    cut_short(tmp_path, steps, optimizer=optimizer)
    torch.manual_seed(99)  # the second process has drawn other things before
    resumed = trainer(dataclasses.replace(SETTINGS, optimizer=optimizer))
    state = resumed.fit(tmp_path, lambda state: {"score": 1.0})
    folder, expected, straight = whole[optimizer]
    assert torch.equal(weights(resumed), expected)
    assert (state.history, state.curve) == (straight.history, straight.curve)
    for name in ("history.csv", "curve.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert pd.read_csv(tmp_path / "history.csv")["step"].tolist() == list(range(1, 10))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_killed_while_it_is_scored_scores_again(tmp_path, whole, epoch):
    def killed(state):
        if state.epoch == epoch:
            raise Cut
        return {"score": 1.0}

    with pytest.raises(Cut):
        trainer(dataclasses.replace(SETTINGS, save_every=1)).fit(tmp_path, killed)
    scored = []
    resumed = trainer()
    state = resumed.fit(tmp_path, lambda state: scored.append(state.epoch) or {"score": 1.0})
    assert scored == list(range(epoch, 4))
    assert torch.equal(weights(resumed), whole["adamw"][1])
    straight = whole["adamw"][2]
    assert (state.history, state.curve) == (straight.history, straight.curve)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_saved_at_the_end_of_its_step(tmp_path, whole, number):
    class Stopped(Toy):
        def before_step(self):
            if not (tmp_path / "history.csv").exists():
                os.kill(os.getpid(), number)

    lines = []
    with pytest.raises(KeyboardInterrupt):
        trainer(kind=Stopped).fit(tmp_path, lambda state: {}, lines.append)
    assert lines == ["stopped at step 1, saved: the same command goes on"]
    resumed = trainer()
    resumed.fit(tmp_path, lambda state: {"score": 1.0}, lines.append)
    assert lines[1] == "resumed at epoch 1, step 2"
    assert torch.equal(weights(resumed), whole["adamw"][1])


def test_a_damaged_state_is_left_for_the_one_before_it(tmp_path, whole, capsys):
    cut_short(tmp_path, 5)
    newer = resume.paths(tmp_path)[-1]
    newer.write_bytes(newer.read_bytes()[:-100])
    resumed = trainer()
    resumed.fit(tmp_path, lambda state: {"score": 1.0})
    assert torch.equal(weights(resumed), whole["adamw"][1])
    assert f"{newer.name} is damaged" in capsys.readouterr().err


def test_the_logit_scale_is_clamped_and_recorded(tmp_path):
    made = trainer(dataclasses.replace(SETTINGS, max_logit_scale=3.0))
    assert made.method.backbone.logit_scale.exp().item() > 7
    scales = [row["logit_scale"] for row in made.fit(tmp_path, lambda state: {}).history]
    assert scales[0] == pytest.approx(3.0)
    assert max(scales) <= 3.0 + 1e-4


@pytest.mark.parametrize(("select", "kept"), [("last", 3), ("val", 2)])
def test_the_selected_epoch_is_kept(tmp_path, select, kept):
    seen, scores = {}, {1: 10.0, 2: 30.0, 3: 20.0}
    made = trainer(dataclasses.replace(SETTINGS, select=select))

    def after_epoch(state):
        seen[state.epoch] = weights(made).clone()
        return {"score": scores[state.epoch]}

    made.fit(tmp_path, after_epoch)
    assert torch.equal(weights(made), seen[kept])


def test_a_loss_that_is_not_finite_names_the_rows(tmp_path):
    class Broken(Toy):
        def encode_video(self, batch):
            video = super().encode_video(batch)
            video.frames[2] = float("nan")
            return VideoFeatures(video.frames.mean(1), video.frames, video.mask)

    made = trainer(kind=Broken)
    with pytest.raises(
        ValueError,
        match=r"epoch 1, step 1: loss is not finite \(loss nan\): videos \[\d+\], captions \[\]$",
    ):
        made.fit(tmp_path, lambda state: {})
    assert resume.paths(tmp_path) == []


def test_the_first_rate_of_the_warm_up_and_the_last_of_the_cosine(tmp_path):
    state = trainer(dataclasses.replace(SETTINGS, warmup=1 / 3)).fit(tmp_path, lambda state: {})
    rates = [row["lr"] for row in state.history]
    assert rates[:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert 0 < rates[-1] < rates[-2] < 1e-2


def test_each_trainer_has_the_precision_it_was_given(tmp_path):
    """Whatever was trained before in the same process."""
    losses = []
    for precision in ("fp32", "bf16", "fp32"):
        said = pytest.warns(UserWarning, match="bf16 on a CPU")
        with said if precision == "bf16" else nullcontext():
            made = trainer(dataclasses.replace(SETTINGS, precision=precision))
        state = made.fit(tmp_path / str(len(losses)), lambda state: {})
        losses.append(state.history[0]["loss"])
    assert losses[0] == losses[2] != losses[1]


def test_dropout_depends_on_seed_and_step_only():
    """Not on what was drawn before, which a resumed run has not drawn."""
    drawn = []
    for noise in (0, 3):
        made = trainer()
        torch.rand(noise)
        drawn.append(made.take_step(batch_of(range(6)))[2]["loss"])
    assert drawn[0] == drawn[1]
