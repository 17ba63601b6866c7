"""Training: one loop for every method, on a CPU, one GPU or several processes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from tvrkit.data.batch import TextVideoBatch
from tvrkit.models.method import Method
from tvrkit.settings import TrainConfig
from tvrkit.training import optim


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


class GatherRows(torch.autograd.Function):
    """Rows of all processes in rank order, (B, ...) -> (world B, ...).

    Every rank computes the same loss on the gathered rows, so each already holds the whole gradient
    of its own rows. DDP then averages over ranks, hence the factor `world`: the encoder's gradient
    equals that of a single process (the released codes halve it on 2 ranks).
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        """All ranks' rows."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """This rank's rows of the gradient, times the number of ranks."""
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def gather(features):
    """The rows of all processes on every process, differentiable; the same object where there is
    one process."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return features
    return features._map(GatherRows.apply)


class Step(nn.Module):
    """Both encoders and the loss as one module, so that DDP sees a single forward."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: TextVideoBatch) -> dict[str, Tensor]:
        """The loss and its parts on the rows of all processes."""
        text, video = (
            gather(self.method.encode_text(batch)),
            gather(self.method.encode_video(batch)),
        )
        return full_precision_loss(self.method, text, video, gather(batch))


def full_precision_loss(method: Method, text, video, batch: TextVideoBatch) -> dict[str, Tensor]:
    """The method's loss in float32, whatever precision the encoders ran in; see `check_finite` for
    what it raises."""
    text, video = (
        side._map(lambda t: t.float() if t.is_floating_point() else t) for side in (text, video)
    )
    with torch.autocast(text.words.device.type, enabled=False):
        return check_finite(method.loss(text, video, batch), text, video, batch)


class NotFinite(ValueError):
    """A loss became NaN or infinite. `rows` are the batch rows with broken features."""

    def __init__(self, message: str, videos: list[int], captions: list[int]):
        super().__init__(message)
        self.videos, self.captions = videos, captions


def check_finite(parts: dict[str, Tensor], text, video, batch: TextVideoBatch) -> dict[str, Tensor]:
    """`parts`, if the loss is finite.

    Raises:
        NotFinite: it is not; carries `video_index` and `caption_index` of the rows whose features
            are not finite.
    """
    if torch.isfinite(parts["loss"]):
        return parts
    bad_video = batch.video_index[~torch.isfinite(video.frames).flatten(1).all(1)].tolist()
    bad_text = batch.caption_index[~torch.isfinite(text.words).flatten(1).all(1)].tolist()
    values = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
    raise NotFinite(f"loss is not finite ({values})", bad_video, bad_text)


def backward_in_chunks(
    method: Method, batch: TextVideoBatch, chunk: int, backward: Callable[[Tensor], None]
) -> dict[str, Tensor]:
    """The gradient of the whole batch with the activations of `chunk` rows in memory at a time.

    Features are computed without gradient, the loss is taken on all of them, and each chunk is
    encoded again to carry its features' gradient into the encoder (GradCache, Gao et al. 2021). The
    random state is replayed, so that dropout draws the same.
    """
    rows = [slice(start, start + chunk) for start in range(0, len(batch), chunk)]
    states, texts, videos = [], [], []
    with torch.no_grad():
        for part in rows:
            states.append(_random_state())
            texts.append(method.encode_text(batch[part]))
            videos.append(method.encode_video(batch[part]))
    text, video = type(texts[0]).cat(texts), type(videos[0]).cat(videos)
    leaves = [tensor.requires_grad_() for tensor in _floats(text) + _floats(video)]
    parts = full_precision_loss(method, text, video, batch)
    backward(parts["loss"])
    after = _random_state()
    for part, state in zip(rows, states, strict=True):
        _replay(state)
        again = _floats(method.encode_text(batch[part])) + _floats(method.encode_video(batch[part]))
        pairs = [
            (new, leaf.grad[part])
            for new, leaf in zip(again, leaves, strict=True)
            if leaf.grad is not None and new.requires_grad
        ]
        torch.autograd.backward(*zip(*pairs, strict=True))
    _replay(after)
    return {name: value.detach() for name, value in parts.items()}


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """Of the CPU and of every GPU: dropout draws where the features are."""
    return (
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def _replay(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def _floats(features) -> list[Tensor]:
    """Every floating-point tensor of one side, in the order of its fields."""
    values = [getattr(features, field.name) for field in dataclasses.fields(features)]
    flat = [
        entry
        for value in values
        for entry in (value.values() if isinstance(value, dict) else [value])
    ]
    return [tensor for tensor in flat if tensor is not None and tensor.is_floating_point()]


class Trainer:
    """Trains one method; `fit` runs all epochs and can be called again after an interruption.

    Args:
        method: to be trained, in place.
        loader: yields TextVideoBatch; `loader.dataset.set_epoch(epoch)` decides what each epoch
            draws.
        train: the recipe's settings.
        device: "cpu" or a GPU.
        name_row: (video_index, caption_index) lists -> text naming them, for errors.
    """

    def __init__(
        self, method: Method, loader, train: TrainConfig, device: torch.device, name_row: Callable
    ):
        self.method, self.train, self.name_row = method, train, name_row
        self.steps_per_epoch = len(loader)
        precision = "no" if train.precision == "fp32" else train.precision
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        if train.chunk_size and self.accelerator.num_processes > 1:
            raise ValueError(
                "train.chunk_size is for one process: expected null under a multi-process launch"
            )
        total = train.epochs * self.steps_per_epoch
        optimizer, self.scheduler = optim.build_optimizer(method, train, total)
        self.step, self.optimizer, self.loader = self.accelerator.prepare(
            Step(method), optimizer, loader
        )
        self.state = State()

    def fit(self, resume: Path, after_epoch: Callable[[State], dict]) -> State:
        """Train to the end, from `resume` where that file is.

        Args:
            resume: written whole after every epoch; a run killed at any moment continues from its
                last epoch and, on a CPU, ends with bit-identical weights.
            after_epoch: called on the main process, returns the epoch's row of the curve; `score`
                in it decides which epoch is kept unless `train.select` is "last".
        """
        if resume.exists():
            self._load(resume)
        for epoch in range(self.state.epoch, self.train.epochs):
            start = time.perf_counter()
            self._epoch(epoch)
            self.state.epoch = epoch + 1
            row = {"epoch": epoch + 1, **after_epoch(self.state)}
            if self.train.select != "last" and row["score"] >= max(
                (r["score"] for r in self.state.curve), default=0
            ):
                self.state.best = {
                    name: t.detach().clone() for name, t in self.method.state_dict().items()
                }
            self.state.curve.append(row)
            self.state.seconds += time.perf_counter() - start
            if self.accelerator.is_main_process:
                self._save(resume)
        if self.state.best is not None:
            self.method.load_state_dict(self.state.best)
        return self.state

    def _epoch(self, epoch: int) -> None:
        self.method.train()
        self.loader.set_epoch(epoch)  # accelerate counts on from it, and tells the data set
        bar = tqdm(
            self.loader,
            desc=f"epoch {epoch + 1}/{self.train.epochs}",
            unit="batch",
            leave=False,
            disable=None if self.accelerator.is_main_process else True,
        )
        for batch in bar:
            try:
                row = self._update(batch)
            except NotFinite as error:
                where = self.name_row(error.videos, error.captions) or "all features are finite"
                raise ValueError(
                    f"epoch {epoch + 1}, step {len(self.state.history) + 1}: {error}: {where}"
                ) from None
            self.state.history.append(
                {"step": len(self.state.history) + 1, "epoch": epoch + 1, **row}
            )
            bar.set_postfix(loss=f"{row['loss']:.3f}")

    def _update(self, batch: TextVideoBatch) -> dict[str, float]:
        batch = batch.to(self.accelerator.device)
        self.optimizer.zero_grad()
        self.method.before_step()
        if self.train.chunk_size and len(batch) > self.train.chunk_size:
            with self.accelerator.autocast():
                parts = backward_in_chunks(
                    self.method, batch, self.train.chunk_size, self.accelerator.backward
                )
        else:
            parts = self.step(batch)
            self.accelerator.backward(parts["loss"])
        # Clipping comes after unscaling: accelerate sees to it (HMMC's released AMP loop clips
        # scaled gradients).
        self.accelerator.clip_grad_norm_(self.method.parameters(), self.train.max_grad_norm)
        rate = self._rate()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        scale = self.method.backbone.logit_scale
        scale.data.clamp_(max=math.log(self.train.max_logit_scale))
        values = {name: value.item() for name, value in parts.items()}
        return {"lr": rate, "logit_scale": scale.exp().item(), **values}

    def _rate(self) -> float:
        """Learning rate of the new parts (of the first group where there are none) in the step to
        come."""
        optimizer = self.optimizer.optimizer
        rates = (
            optimizer.rates()
            if isinstance(optimizer, optim.BertAdam)
            else [g["lr"] for g in optimizer.param_groups]
        )
        names = [group["name"] for group in optimizer.param_groups]
        return rates[names.index("new")] if "new" in names else rates[0]

    def _save(self, path: Path) -> None:
        tensors = {
            "state": dataclasses.asdict(self.state),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "random": torch.get_rng_state(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(tensors, temporary)
        temporary.replace(path)

    def _load(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        self.state = State(**saved["state"])
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["random"])
