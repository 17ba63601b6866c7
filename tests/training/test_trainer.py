"""The training loop: resume, selection, rates, what a broken loss says."""

import dataclasses

import pytest
import torch

from tests.training.toy import SETTINGS, Backbone, Toy, trainer
from tvrkit.data.batch import VideoFeatures


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.method.parameters()])


def test_the_loss_falls_and_every_step_is_in_the_history(tmp_path):
    made = trainer(dataclasses.replace(SETTINGS, epochs=30))
    state = made.fit(tmp_path / "resume.pt", lambda state: {})
    losses_seen = [row["loss"] for row in state.history]
    assert len(losses_seen) == 30 * 3
    assert [row["epoch"] for row in state.curve] == list(range(1, 31))
    assert sum(losses_seen[-3:]) < 0.9 * sum(losses_seen[:3])


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    whole = trainer()
    expected = whole.fit(tmp_path / "whole.pt", lambda state: {})

    def interrupt(state):
        if state.epoch == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        trainer().fit(tmp_path / "resume.pt", interrupt)
    torch.manual_seed(99)
    resumed = trainer()
    state = resumed.fit(tmp_path / "resume.pt", interrupt)
    assert torch.equal(weights(resumed), weights(whole))
    assert state.history == expected.history
    assert state.curve == expected.curve


def test_the_logit_scale_is_clamped_and_recorded(tmp_path):
    made = trainer(dataclasses.replace(SETTINGS, max_logit_scale=3.0))
    assert made.method.backbone.logit_scale.exp().item() > 7
    scales = [
        row["logit_scale"] for row in made.fit(tmp_path / "resume.pt", lambda state: {}).history
    ]
    assert scales[0] == pytest.approx(3.0)
    assert max(scales) <= 3.0 + 1e-4


@pytest.mark.parametrize(("select", "kept"), [("last", 3), ("val", 2)])
def test_the_selected_epoch_is_kept(tmp_path, select, kept):
    seen, scores = {}, {1: 10.0, 2: 30.0, 3: 20.0}
    made = trainer(dataclasses.replace(SETTINGS, select=select))

    def after_epoch(state):
        seen[state.epoch] = weights(made).clone()
        return {"score": scores[state.epoch]}

    made.fit(tmp_path / "resume.pt", after_epoch)
    assert torch.equal(weights(made), seen[kept])


def test_a_loss_that_is_not_finite_names_the_rows(tmp_path):
    class Broken(Toy):
        def encode_video(self, batch):
            video = super().encode_video(batch)
            video.frames[2] = float("nan")
            return VideoFeatures(video.frames.mean(1), video.frames, video.mask)

    made = trainer(method=Broken(Backbone(), None))
    with pytest.raises(
        ValueError,
        match=r"epoch 1, step 1: loss is not finite \(loss nan\): videos \[2\], captions \[\]",
    ):
        made.fit(tmp_path / "resume.pt", lambda state: {})
    assert not (tmp_path / "resume.pt").exists()


def test_the_first_rate_of_the_warm_up_and_the_last_of_the_cosine(tmp_path):
    state = trainer(dataclasses.replace(SETTINGS, warmup=1 / 3)).fit(
        tmp_path / "resume.pt", lambda state: {}
    )
    rates = [row["lr"] for row in state.history]
    assert rates[:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert 0 < rates[-1] < rates[-2] < 1e-2


def test_each_trainer_has_the_precision_and_the_device_it_was_given(tmp_path, monkeypatch):
    """accelerate keeps the first one's for the whole process, or refuses the second."""
    first, half = trainer(), trainer(dataclasses.replace(SETTINGS, precision="bf16"))
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # stands for a GPU
    elsewhere = trainer()
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    last = trainer()
    made = [each.accelerator for each in (first, half, elsewhere, last)]
    assert [each.mixed_precision for each in made] == ["no", "bf16", "no", "no"]
    assert [each.device.type for each in made] == ["cpu", "cpu", "meta", "cpu"]
    losses = []
    for each in (first, half, last):
        torch.manual_seed(0)
        state = each.fit(tmp_path / f"{len(losses)}.pt", lambda state: {})
        losses.append(state.history[0]["loss"])
    assert losses[0] == losses[2] != losses[1]
