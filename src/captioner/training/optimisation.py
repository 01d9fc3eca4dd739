"""Optimisers, learning-rate schedules and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
# The fused kernels update all parameters in one pass; RMSprop only has the foreach form.
FUSED = ("adam", "adamw", "sgd")


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, lr_by_prefix: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and by decay (matrices do, vectors do not).

    `lr_by_prefix` gives parameters whose name starts so a learning rate of their own.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = (rate for prefix, rate in lr_by_prefix.items() if name.startswith(prefix))
            key = (next(own, lr), weight_decay if parameter.dim() > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], **settings: Any
) -> torch.optim.Optimizer:
    """The optimiser `name` with torch's own arguments (betas, eps, alpha, momentum)."""
    kind = {"fused": True} if name in FUSED else {"foreach": True}
    return OPTIMIZERS[name](groups, **settings, **kind)


def schedule_factor(
    step: int, *, total_steps: int, warmup_steps: int = 0, schedule: str = "constant"
) -> float:
    """The learning rate's multiple at `step` (from 0): linear warm-up, then the schedule.

    "cosine" (Loshchilov & Hutter 2017) and "linear" end at 0 at `total_steps`.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = min(1.0, step / max(1, total_steps))
    shape = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}
    return warm * shape[schedule]


def clip_gradients(
    parameters: Iterable[Tensor], *, norm: float | None, value: float | None
) -> Tensor | None:
    """Clip in place: each element to +-value, then all together to a norm (returned, unclipped)."""
    parameters = list(parameters)
    if value is not None:
        nn.utils.clip_grad_value_(parameters, value)
    if norm is not None:
        return nn.utils.clip_grad_norm_(parameters, norm)
    return None
