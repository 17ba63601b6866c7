"""Training: one loop for every method, on a CPU, one GPU or several processes."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from tvrkit.data import processes
from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.method import Method, Tensors, precision
from tvrkit.settings import TrainConfig
from tvrkit.training import distributed, optim, resume
from tvrkit.training.guard import check_finite
from tvrkit.training.large_batch import gradient

SAVE_SECONDS = 180.0  # between two saved states, where the recipe names no number of steps
NOTED_AFTER = 10  # steps on a GPU whose numbers are read together: it is waited for each time

WATCHED = 128  # rows of a batch whose signs of life are taken


@dataclasses.dataclass
class State:
    """What a training run has seen so far; with the weights and the optimiser's state, all it needs
    to go on.

    Attributes:
        step: finished steps.
        epoch: finished epochs.
        history: one row per step: step, epoch, lr, logit_scale, loss and the method's loss parts.
        curve: one row per scored epoch: epoch, the scores of the selection split, `Method.signs`.
        seconds: spent in training, scoring of the selection split included, over all interruptions.
        best: weights of the best epoch so far, None while the last one is kept.
    """

    step: int = 0
    epoch: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    curve: list[dict] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    best: dict[str, Tensor] | None = None


# A step whose numbers are not read yet, for on a GPU reading waits for it: its number from 1, the
# learning rate, the logit scale with the loss and its parts, and the broken rows (see `guard`).
Taken = tuple[int, float, Tensors, Tensor]


class Trainer:
    """Trains one method; `fit` runs all epochs and can be called again after an interruption.

    Args:
        method: to be trained, in place.
        loader: yields this process's rows of each TextVideoBatch; `loader.dataset.set_epoch(epoch)`
            decides what each epoch draws, and `loader.batch_sampler.first` at which step it starts,
            see `loader.EpochBatches`.
        train: the recipe's settings.
        device: of this process.
        name_rows: (video_index, caption_index) lists -> text naming them, for errors.
    """

    def __init__(
        self, method: Method, loader, train: TrainConfig, device: torch.device, name_rows: Callable
    ):
        if device.type == "cpu" and train.precision == "bf16":
            warnings.warn("train.precision: bf16 on a CPU is up to ten times slower", stacklevel=2)
        self.method, self.loader, self.train, self.device = method, loader, train, device
        self.name_rows, self.seed = name_rows, torch.initial_seed()
        total = train.epochs * len(loader)
        self.optimizer, self.scheduler = optim.build_optimizer(method, train, total)
        self.state, self.taken, self.since = State(), list[Taken](), 0.0
        self.is_main = processes.rank() == 0

    def fit(
        self,
        folder: Path,
        score: Callable[[State], dict],
        report: Callable[[str], None] = lambda line: None,
    ) -> State:
        """Train to the end, from where `folder` says that the run was interrupted.

        Every process calls it; the main one writes.

        Args:
            folder: gets history.csv and curve.csv, row by row, and the last two states
                (`resume.save`): a run killed at any moment continues from there and, on a CPU,
                ends with bit-identical weights.
            score: called after every epoch, returns its row of the curve; `score` in it decides
                which epoch is kept unless `train.select` is "last".
            report: called on the main process with a line of text, after every epoch and where a
                run is resumed or stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved.
            ValueError: a loss is not finite.
        """
        self.folder = folder
        self.report = report if self.is_main else lambda line: None
        self._load()
        self.since = self.saved = time.monotonic()
        with resume.stop_requests() as self.stop_asked:
            for epoch in range(len(self.state.curve), self.train.epochs):
                self._epoch(epoch)
                self.state.epoch = epoch + 1
                self._keep({"epoch": epoch + 1, **score(self.state), **self._signs(epoch)})
                self._save()
                self.report(self._epoch_line())
                self._stop_if_asked()
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
        if self.is_main:
            resume.append(self.folder / "curve.csv", [row])

    def _epoch_line(self) -> str:
        state, row, epochs = self.state, self.state.curve[-1], self.train.epochs
        loss = np.mean([step["loss"] for step in state.history if step["epoch"] == state.epoch])
        line = f"epoch {state.epoch}/{epochs}: loss {loss:.3f}"
        for name in ("t2v R@1", "v2t R@1"):
            line += f", {row['split']} {name} {row[name]:.1f}" if name in row else ""
        left = state.seconds / state.epoch * (epochs - state.epoch)
        return f"{line}, {tqdm.format_interval(left)} left"

    def _epoch(self, epoch: int) -> None:
        """The steps of an epoch that are not done yet."""
        self.method.train()
        done = self.state.step - epoch * len(self.loader)
        self.loader.dataset.set_epoch(epoch)
        self.loader.batch_sampler.first = done
        title = f"epoch {epoch + 1}/{self.train.epochs}"
        noted_after = 1 if self.device.type == "cpu" else NOTED_AFTER
        options = {"unit": "batch", "leave": False, "disable": None if self.is_main else True}
        with tqdm(desc=title, total=len(self.loader), initial=done, **options) as bar:
            for batch in self.loader:
                self.taken.append(self.take_step(batch))
                self.state.step += 1
                bar.update()
                if len(self.taken) == noted_after:
                    self._note(epoch)
                    bar.set_postfix(loss=f"{self.state.history[-1]['loss']:.3f}")
                    self._stop_if_asked()
                    self._save_if_due()
            self._note(epoch)

    def _signs(self, epoch: int) -> dict[str, float]:
        """The method's signs of life, on (part of) the epoch's first batch."""
        self.method.eval()
        self.loader.dataset.set_epoch(epoch)
        self.loader.batch_sampler.first = 0
        with torch.random.fork_rng(devices=[]), precision(self.train, self.device):
            torch.manual_seed(epoch)
            batch = distributed.gather(next(iter(self.loader)).to(self.device))
            return self.method.signs(batch[:WATCHED])

    def take_step(self, batch: TextVideoBatch) -> Taken:
        """One step."""
        batch = batch.to(self.device)
        self.optimizer.zero_grad()
        self.method.before_step()
        # What a step draws (dropout) comes from its number: a resumed run needs no random state.
        draw = np.random.default_rng([self.seed, self.state.step, processes.rank()])
        torch.manual_seed(int(draw.integers(2**63)))
        parts, broken = gradient(self.method, batch, self.train)
        distributed.average_gradients(self.method.parameters())
        clip_grad_norm_(self.method.parameters(), self.train.max_grad_norm)
        rate = optim.next_rate(self.optimizer)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        scale = self.method.backbone.logit_scale
        scale.data.clamp_(max=math.log(self.train.max_logit_scale))
        return self.state.step + 1, rate, {"logit_scale": scale.detach().exp(), **parts}, broken

    def _note(self, epoch: int) -> None:
        """Read the numbers of the steps taken, check them and add them to the history."""
        rows = []
        for step, rate, parts, broken in self.taken:
            numbers = dict(zip(parts, torch.stack([*parts.values()]).tolist(), strict=True))
            scale = numbers.pop("logit_scale")
            check_finite(f"epoch {epoch + 1}, step {step}", numbers, broken, self.name_rows)
            row = {"step": step, "epoch": epoch + 1, "lr": rate, "logit_scale": scale}
            rows.append(row | numbers)
        self.taken.clear()
        self.state.history += rows
        if self.is_main:
            resume.append(self.folder / "history.csv", rows)

    def _stop_if_asked(self) -> None:
        if any(processes.collect([self.stop_asked()])):
            self._save()
            self.report(f"stopped at step {self.state.step}, saved: the same command goes on")
            raise KeyboardInterrupt

    def _save_if_due(self) -> None:
        """Main process only: what it saves is the same everywhere."""
        every, waited = self.train.save_every, time.monotonic() - self.saved
        if self.state.step % every == 0 if every else waited > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.since
        self.since = self.saved = now
        if self.is_main:
            scheduler = self.scheduler.state_dict() if self.scheduler else None
            parts = {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()}
            resume.save(self.folder, {"state": vars(self.state), "scheduler": scheduler, **parts})

    def _load(self) -> None:
        saved = processes.from_main(lambda: resume.newest(self.folder))
        if saved is not None:
            self.state = State(**saved["state"])
            self.method.load_state_dict(saved["method"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.scheduler:
                self.scheduler.load_state_dict(saved["scheduler"])
            epoch, step = divmod(self.state.step, len(self.loader))
            self.report(f"resumed at epoch {epoch + 1}, step {step + 1}")
        if self.is_main:  # what was written after the state is made again
            self.folder.mkdir(parents=True, exist_ok=True)
            resume.write_table(self.folder / "history.csv", self.state.history)
            resume.write_table(self.folder / "curve.csv", self.state.curve)
