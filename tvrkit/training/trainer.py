"""Training: one loop for every method, on a CPU, one GPU or several processes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from tqdm import tqdm

from tvrkit import files
from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.method import Method
from tvrkit.settings import TrainConfig
from tvrkit.training import optim
from tvrkit.training.distributed import gather
from tvrkit.training.guard import NotFinite, full_precision_loss
from tvrkit.training.large_batch import backward_in_chunks


@dataclasses.dataclass
class State:
    """What a training run has seen so far; with the tensors beside it in `resume.pt`, all it needs
    to go on.

    Attributes:
        epoch: finished epochs.
        history: one row per step: step, epoch, lr, logit_scale, loss and the method's loss parts.
        curve: one row per epoch: epoch and the scores of the selection split.
        seconds: spent in epochs, scoring of the selection split included, over all interruptions.
        best: weights of the best epoch so far, None while the last one is kept.
    """

    epoch: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    curve: list[dict] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    best: dict[str, Tensor] | None = None


class Step(nn.Module):
    """Both encoders and the loss as one module, so that DDP sees a single forward."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: TextVideoBatch) -> dict[str, Tensor]:
        """The loss and its parts on the rows of all processes."""
        text, video = self.method.encode_text(batch), self.method.encode_video(batch)
        return full_precision_loss(self.method, gather(text), gather(video), gather(batch))


class Trainer:
    """Trains one method; `fit` runs all epochs and can be called again after an interruption.

    Args:
        method: to be trained, in place.
        loader: yields TextVideoBatch; `loader.dataset.set_epoch(epoch)` decides what each epoch
            draws.
        train: the recipe's settings.
        device: "cpu" or a GPU.
        name_rows: (video_index, caption_index) lists -> text naming them, for errors.
    """

    def __init__(
        self, method: Method, loader, train: TrainConfig, device: torch.device, name_rows: Callable
    ):
        self.method, self.train, self.name_rows = method, train, name_rows
        precision = "no" if train.precision == "fp32" else train.precision
        # accelerate keeps device and precision of the first Accelerator for the whole process: here
        # each trainer has its own, and earlier ones keep theirs.
        PartialState._shared_state, AcceleratorState._shared_state = {}, {}
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        if train.chunk_size and self.accelerator.num_processes > 1:
            raise ValueError(
                "train.chunk_size is for one process: expected null under a multi-process launch"
            )
        total = train.epochs * len(loader)
        optimizer, self.scheduler = optim.build_optimizer(method, train, total)
        prepared = self.accelerator.prepare(Step(method), optimizer, loader)
        self.step, self.optimizer, self.loader = prepared
        self.state = State()

    def fit(
        self,
        resume: Path,
        score: Callable[[State], dict],
        report: Callable[[State, str], None] = lambda state, line: None,
    ) -> State:
        """Train to the end, from `resume` where that file is.

        Args:
            resume: written whole after every epoch; a run killed at any moment continues from its
                last epoch and, on a CPU, ends with bit-identical weights.
            score: called after every epoch, returns its row of the curve; `score` in it decides
                which epoch is kept unless `train.select` is "last".
            report: called on the main process with a line of text, after every epoch and where a
                run is resumed.
        """
        if resume.exists():
            self._load(resume)
            self._report(report, f"resumed at epoch {self.state.epoch + 1}")
        for epoch in range(self.state.epoch, self.train.epochs):
            start = time.perf_counter()
            self._epoch(epoch)
            self.state.epoch = epoch + 1
            self._keep({"epoch": epoch + 1, **score(self.state)})
            self.state.seconds += time.perf_counter() - start
            self._report(report, self._epoch_line())
            if self.accelerator.is_main_process:
                self._save(resume)
        if self.state.best is not None:
            self.method.load_state_dict(self.state.best)
        return self.state

    def _keep(self, row: dict) -> None:
        """Add an epoch's row to the curve, and its weights where it is the best so far."""
        best = max((earlier.get("score", 0) for earlier in self.state.curve), default=0)
        if self.train.select != "last" and row["score"] >= best:
            weights = self.method.state_dict()
            self.state.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.state.curve.append(row)

    def _report(self, report: Callable[[State, str], None], line: str) -> None:
        if self.accelerator.is_main_process:
            report(self.state, line)

    def _epoch_line(self) -> str:
        state, row, epochs = self.state, self.state.curve[-1], self.train.epochs
        loss = np.mean([step["loss"] for step in state.history if step["epoch"] == state.epoch])
        line = f"epoch {state.epoch}/{epochs}: loss {loss:.3f}"
        for name in ("t2v R@1", "v2t R@1"):
            line += f", {row['split']} {name} {row[name]:.1f}" if name in row else ""
        left = state.seconds / state.epoch * (epochs - state.epoch)
        return f"{line}, {tqdm.format_interval(left)} left"

    def _epoch(self, epoch: int) -> None:
        self.method.train()
        self.loader.set_epoch(epoch)  # accelerate counts on from it, and tells the data set
        hidden = None if self.accelerator.is_main_process else True
        title = f"epoch {epoch + 1}/{self.train.epochs}"
        bar = tqdm(self.loader, desc=title, unit="batch", leave=False, disable=hidden)
        for batch in bar:
            number = len(self.state.history) + 1
            try:
                row = self._update(batch)
            except NotFinite as error:
                rows = self.name_rows(error.videos, error.captions) or "all features are finite"
                where = f"epoch {epoch + 1}, step {number}"
                raise ValueError(f"{where}: {error}: {rows}") from None
            self.state.history.append({"step": number, "epoch": epoch + 1, **row})
            bar.set_postfix(loss=f"{row['loss']:.3f}")

    def _update(self, batch: TextVideoBatch) -> dict[str, float]:
        batch, chunk = batch.to(self.accelerator.device), self.train.chunk_size
        backward = self.accelerator.backward
        self.optimizer.zero_grad()
        self.method.before_step()
        if chunk and len(batch) > chunk:
            with self.accelerator.autocast():
                parts = backward_in_chunks(self.method, batch, chunk, backward)
        else:
            parts = self.step(batch)
            backward(parts["loss"])
        # Clipping comes after unscaling: accelerate sees to it (HMMC's released AMP loop clips
        # scaled gradients).
        self.accelerator.clip_grad_norm_(self.method.parameters(), self.train.max_grad_norm)
        rate = optim.next_rate(self.optimizer.optimizer)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        scale = self.method.backbone.logit_scale
        scale.data.clamp_(max=math.log(self.train.max_logit_scale))
        values = {name: value.item() for name, value in parts.items()}
        return {"lr": rate, "logit_scale": scale.exp().item(), **values}

    def _save(self, path: Path) -> None:
        saved = {
            "state": dataclasses.asdict(self.state),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "random": torch.get_rng_state(),
        }
        with files.replacing(path) as part:
            torch.save(saved, part)

    def _load(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        self.state = State(**saved["state"])
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["random"])
