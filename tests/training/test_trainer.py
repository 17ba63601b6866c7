"""The training loop: resume, chunked gradients, selection, guards, several processes."""

import dataclasses

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tvrkit.data.batch import TextFeatures, TextVideoBatch, VideoFeatures
from tvrkit.losses.contrastive import info_nce
from tvrkit.models.method import Method
from tvrkit.settings import TrainConfig
from tvrkit.training.trainer import Step, Trainer, backward_in_chunks

CPU = torch.device("cpu")
SETTINGS = TrainConfig(epochs=3, batch_size=6, lr=1e-2, clip_lr=1e-2, workers=0)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.words = nn.Embedding(20, 8)
        self.dropout = nn.Dropout(0.2)
        self.pixels = nn.Linear(12, 8)


class Toy(Method):
    """A method with every moving part of a real one, small enough to step in microseconds."""

    def encode_text(self, batch):
        words = self.backbone.dropout(self.backbone.words(batch.tokens))
        return TextFeatures(words.mean(1), words, batch.token_mask, batch.token_mask.long())

    def encode_video(self, batch):
        frames = self.backbone.pixels(batch.frames.float().flatten(2) / 255)
        return VideoFeatures(frames.mean(1), frames, batch.frame_mask)

    def similarity(self, text, video):
        return (
            nn.functional.normalize(text.sentence, dim=-1)
            @ nn.functional.normalize(video.video, dim=-1).T
        )

    def loss(self, text, video, batch):
        scale = self.backbone.logit_scale.exp()
        return {"loss": info_nce(self.similarity(text, video), logit_scale=scale)}


class Rows(Dataset):
    """Deterministic in (epoch, row)."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 15

    def __getitem__(self, row):
        draw = torch.Generator().manual_seed(1000 * self.epoch + row)
        return (
            torch.randint(0, 20, (5,), generator=draw),
            torch.randint(0, 255, (3, 3, 2, 2), generator=draw),
            row,
        )


def collate(rows):
    tokens, frames, index = zip(*rows, strict=True)
    tokens, frames, index = (
        torch.stack(tokens),
        torch.stack(frames).to(torch.uint8),
        torch.tensor(index),
    )
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return TextVideoBatch(
        tokens,
        mask,
        mask.long(),
        frames,
        torch.ones(frames.shape[:2], dtype=torch.bool),
        index,
        index,
    )


def trainer(settings=SETTINGS, method=None):
    torch.manual_seed(0)
    method = method or Toy(Backbone(), None)
    loader = DataLoader(Rows(), settings.batch_size, collate_fn=collate)
    return Trainer(
        method,
        loader,
        settings,
        CPU,
        lambda videos, captions: f"videos {videos}, captions {captions}",
    )


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


@pytest.mark.parametrize("chunk", [1, 4, 15])
def test_chunked_gradients_are_those_of_the_whole_batch(chunk):
    batch = collate([Rows()[row] for row in range(15)])
    made = trainer()
    method = made.method.eval()  # dropout draws per call, so a comparison needs it off
    method.loss(method.encode_text(batch), method.encode_video(batch), batch)["loss"].backward()
    expected = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    backward_in_chunks(method, batch, chunk, torch.Tensor.backward)
    for p, gradient in zip(method.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_in_float32_under_mixed_precision():
    seen = []

    class Watched(Toy):
        def loss(self, text, video, batch):
            seen.append(self.similarity(text, video).dtype)
            return super().loss(text, video, batch)

    batch = collate([Rows()[row] for row in range(4)])
    method = Watched(Backbone(), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.encode_video(batch).frames.dtype == torch.bfloat16
        Step(method)(batch)["loss"].backward()
    assert seen == [torch.float32]
    assert method.backbone.pixels.weight.grad.abs().sum() > 0


def test_chunks_replay_dropout():
    """The gradient reaches exactly the embedding entries that dropout kept when the features were
    first made."""
    batch = collate([Rows()[row] for row in range(8)])
    method = trainer().method.train()
    kept = []
    method.backbone.dropout.register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach() != 0)
    )
    backward_in_chunks(method, batch, 4, torch.Tensor.backward)
    first, again = kept[:2], kept[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not first[0].all()


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


def _gradient_of_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    method = Toy(Backbone(), None).eval()
    step = nn.parallel.DistributedDataParallel(Step(method))
    step(collate([Rows()[row] for row in range(rank * 4, rank * 4 + 4)]))["loss"].backward()
    torch.save({name: p.grad for name, p in method.named_parameters()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    multiprocessing.spawn(_gradient_of_rank, (tmp_path,), nprocs=2)
    torch.manual_seed(0)
    method = Toy(Backbone(), None).eval()
    Step(method)(collate([Rows()[row] for row in range(8)]))["loss"].backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, p in method.named_parameters():
            torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-7)
