"""Optimisers, parameter groups and the learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tvrkit.models.method import Method
from tvrkit.settings import TrainConfig, choose

BETAS, EPS = (0.9, 0.98), 1.0e-6
BERT_SCHEDULES = {  # share of the peak rate after the warm-up, by progress x and warm-up share w
    "cosine": lambda x, w: 0.5 * (1.0 + math.cos(math.pi * x)),
    "linear": lambda x, w: max((x - 1.0) / (w - 1.0), 0.0),
    "constant": lambda x, w: 1.0,
}


class BertAdam(Optimizer):
    """The optimiser of the released codes: Adam with its schedule inside and without bias
    correction.

    g <- g min(1, max_grad_norm / (|g| + 1e-6)) for each parameter; m, v moving averages of g, g^2;
    p <- p - lr schedule(step / total_steps) (m / (sqrt(v) + eps) + weight_decay p).
    Steps count from 0: the first step of a warm-up moves nothing. Past `total_steps` the cosine
        rises again.

    Args:
        params: parameters, or groups that may override any of the other arguments.
        lr: peak learning rate.
        warmup: share of `total_steps` with a linearly rising rate, in [0, 1).
        total_steps: length of the schedule.
        schedule: "cosine", "linear" or "constant", what follows the warm-up.
        max_grad_norm: largest norm of each single parameter's gradient.
    """

    def __init__(
        self,
        params,
        lr: float,
        warmup: float,
        total_steps: int,
        schedule: str = "cosine",
        *,
        betas=BETAS,
        eps=EPS,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ):
        if not 0.0 <= warmup < 1.0 or total_steps < 1:
            got = f"{warmup}, {total_steps}"
            raise ValueError(f"expected warmup in [0, 1), total_steps >= 1, got {got}")
        choose("schedule", schedule, BERT_SCHEDULES)
        defaults = {"lr": lr, "warmup": warmup, "total_steps": total_steps, "schedule": schedule}
        defaults |= {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"max_grad_norm": max_grad_norm})

    def next_rate(self, group: dict) -> float:
        """Learning rate of a group in the step to come."""
        steps = [self.state[p]["step"] for p in group["params"] if p in self.state]
        return self._rate(group, max(steps, default=0))

    @staticmethod
    def _rate(group: dict, step: int) -> float:
        x, warmup = step / group["total_steps"], group["warmup"]
        after = BERT_SCHEDULES[group["schedule"]]
        return group["lr"] * (x / warmup if x < warmup else after(x, warmup))

    @torch.no_grad()
    def step(self):
        """One update of every parameter with a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p, group: dict) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        gradient = p.grad * (group["max_grad_norm"] / (p.grad.norm() + 1.0e-6)).clamp(max=1.0)
        beta1, beta2 = group["betas"]
        m = state["m"].lerp_(gradient, 1 - beta1)
        v = state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        direction = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * p
        p.sub_(self._rate(group, state["step"]) * direction)
        state["step"] += 1


def parameter_groups(method: Method, train: TrainConfig) -> list[dict]:
    """Groups by learning rate (new parts, backbone, its text tower) and by weight decay.

    Only weight matrices decay: no LayerNorm gain, bias, logit scale or embedding. With
    `train.decay_all` all but biases do: the released codes exclude "LayerNorm.weight" by name, and
    CLIP's is called `ln_1.weight`.

    Returns:
        Groups with `name` ("new", "backbone" or "text", perhaps with "-no-decay"), `params`, `lr`,
        `weight_decay`. Every parameter that takes a gradient is in exactly one.
    """
    text_lr = train.clip_lr if train.text_lr is None else train.text_lr
    rates = {"new": train.lr, "backbone": train.clip_lr, "text": text_lr}
    kept = {id(m.weight) for m in method.modules() if isinstance(m, nn.Embedding | nn.LayerNorm)}
    groups: dict[str, dict] = {}
    for name, p in method.named_parameters():
        if not p.requires_grad:
            continue
        part = "backbone" if name.startswith("backbone.") else "new"
        part = "text" if name.startswith("backbone.clip.text.") else part
        matrix = p.ndim > 1 and id(p) not in kept and not name.endswith("embedding")
        decays = not name.endswith("bias") and (train.decay_all or matrix)
        key, decay = (part, train.weight_decay) if decays else (f"{part}-no-decay", 0.0)
        group = {"name": key, "params": [], "lr": rates[part], "weight_decay": decay}
        groups.setdefault(key, group)["params"].append(p)
    return list(groups.values())


def schedule(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up over the share `warmup` of `total_steps`, its first step moving; then cosine
    to zero."""
    rising = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min((step - rising) / max(total_steps - rising, 1), 1.0)
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def build_optimizer(
    method: Method, train: TrainConfig, total_steps: int
) -> tuple[Optimizer, LambdaLR | None]:
    """The recipe's optimiser, and its scheduler (None for BertAdam, which has it inside)."""
    groups = parameter_groups(method, train)
    if train.optimizer == "bertadam":
        return BertAdam(groups, train.lr, train.warmup, total_steps), None
    optimizer = AdamW(groups, betas=BETAS, eps=EPS, fused=True)  # one kernel for all weights
    return optimizer, schedule(optimizer, total_steps, train.warmup)


def next_rate(optimizer: Optimizer) -> float:
    """Learning rate of the new parts (of the first group where there are none) in the step to
    come."""
    groups = optimizer.param_groups
    group = next((group for group in groups if group["name"] == "new"), groups[0])
    return optimizer.next_rate(group) if isinstance(optimizer, BertAdam) else group["lr"]
