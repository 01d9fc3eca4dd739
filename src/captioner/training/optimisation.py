"""Optimisers, learning-rate schedules and gradient clipping."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioner.restore import describe

SCHEDULES = ("constant", "cosine", "linear")


class Schedule(NamedTuple):
    """How a learning rate changes, see `schedule_factor`."""

    schedule: str
    warmup_steps: int


class FusedRMSprop(torch.optim.RMSprop):
    """torch.optim.RMSprop, its update one pass over the weights where there is no momentum.

    torch has a fused kernel for Adam only. RMSprop is Adam without a first moment (beta1 = 0) and
    without bias correction (an infinite step count), so that kernel computes it; the first moment
    that it writes is the gradient itself and goes where the gradient lies. State and state_dict
    are torch.optim.RMSprop's.
    """

    LATE = 1e9  # steps: beta2 to this power is 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update. With `closure`, or what torch's kernel cannot do, it is torch's own."""
        plain = any(g["momentum"] or g["centered"] or g["maximize"] for g in self.param_groups)
        if closure is not None or plain:
            return super().step(closure)
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
        return None

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                on_device = parameter.device if group["capturable"] else None
                self.state[parameter] = {
                    "step": torch.zeros((), device=on_device),
                    "square_avg": torch.zeros_like(parameter),
                }
            self.state[parameter]["step"] += 1
        gradients = [p.grad for p in parameters if p.grad is not None]
        late = torch.full((), self.LATE, device=parameters[0].device)
        settings = {"lr": group["lr"], "weight_decay": group["weight_decay"], "eps": group["eps"]}
        torch._fused_adam_(
            parameters,
            gradients,
            gradients,
            [self.state[p]["square_avg"] for p in parameters],
            [],
            [late] * len(parameters),
            beta1=0.0,
            beta2=group["alpha"],
            amsgrad=False,
            maximize=False,
            **settings,
        )


def _uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser without what torch.compile needs of it: nothing here is compiled, and torch's
    own methods import torch._dynamo when they are first called, which takes seconds."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "__doc__": kind.__doc__})


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(_uncompiled(torch.optim.Adam), fused=True),
    "adamw": partial(_uncompiled(torch.optim.AdamW), fused=True),
    "sgd": partial(_uncompiled(torch.optim.SGD), fused=True),
    "rmsprop": _uncompiled(FusedRMSprop),
}


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    lr_by_prefix: Mapping[str, float],
    decay_by_prefix: Mapping[str, float] | None = None,
    schedule_by_prefix: Mapping[str, Schedule] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and by decay (matrices do, vectors do not).

    `lr_by_prefix` gives parameters whose name starts so a learning rate of their own,
    `decay_by_prefix` a decay and `schedule_by_prefix` a schedule of their own, which stands in
    their group.
    """

    def own(by_prefix: Mapping[str, Any] | None, name: str, default: Any) -> Any:
        found = (value for prefix, value in (by_prefix or {}).items() if name.startswith(prefix))
        return next(found, default)

    groups: dict[tuple[float, float, Schedule | None], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = own(decay_by_prefix, name, weight_decay) if parameter.dim() > 1 else 0.0
            key = (own(lr_by_prefix, name, lr), decay, own(schedule_by_prefix, name, None))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            **{"lr": rate, "base_lr": rate, "weight_decay": decay},
            **({} if schedule is None else schedule._asdict()),
        }
        for (rate, decay, schedule), parameters in groups.items()
    ]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], **settings: Any
) -> torch.optim.Optimizer:
    """The optimiser `name` with torch's own arguments (betas, eps, alpha, momentum).

    All of them update each weight in one pass over it and its state.
    """
    return OPTIMIZERS[name](groups, **settings)


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


def take_rates_from_device(optimizer: torch.optim.Optimizer, device: torch.device) -> list[Tensor]:
    """Make every group's learning rate a tensor [] on the device, and return these.

    A CUDA graph reads them whenever it is replayed. So that it can hold the update, step counts
    move to the device as well, and groups are marked `capturable`.
    """
    rates = []
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        rates.append(group["lr"])
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
    for state in optimizer.state.values():
        if "step" in state and device.type == "cuda":
            state["step"] = state["step"].to(device)
    return rates


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state_dict as without a CUDA graph: learning rates are numbers."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
        if "capturable" in group:
            group["capturable"] = False
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], *, stepped: bool
) -> None:
    """Continue from what `optimizer_state` gave.

    ValueError where it is of other parameters or other settings or, `stepped`, has nothing of them:
    torch would begin them anew in silence.
    """
    names, groups, own_groups = (
        _state_names(optimizer),
        state["param_groups"],
        optimizer.param_groups,
    )
    if len(groups) != len(own_groups):
        raise ValueError(f"{len(groups)} parameter groups, expected {len(own_groups)}")
    # A setting that is not there is one that this version of torch has added.
    groups = [{**own, **group} for group, own in zip(groups, own_groups, strict=True)]
    for number, (group, own) in enumerate(zip(groups, own_groups, strict=True)):
        where = f"parameter group {number}"
        for key in own.keys() - _OF_A_RUN:
            if not _same(group[key], own[key]):
                found = describe(group[key])
                raise ValueError(f"{where} has {key}={found}, expected {own[key]!r}")
        if len(group["params"]) != len(own["params"]):
            expected = len(own["params"])
            raise ValueError(f"{where} has {len(group['params'])} parameters, expected {expected}")
        stored = [state["state"].get(key) for key in group["params"]]
        for parameter, one in zip(own["params"], stored, strict=True):
            if one is not None:
                _check_moments(one, names, parameter, where)
        if stepped and names and not any(stored):
            raise ValueError(f"{where} has no state of the optimiser ({', '.join(sorted(names))})")
    optimizer.load_state_dict({**state, "param_groups": groups})


# Of a parameter group what changes in a run, or with the machine.
_OF_A_RUN = {"params", "lr", "capturable", "fused", "foreach"}


def _same(found: Any, own: Any) -> bool:
    """Whether a setting is the same; a tensor is no number, though it may equal one."""
    if isinstance(own, list | tuple):
        listed = isinstance(found, list | tuple) and len(found) == len(own)
        return listed and all(map(_same, found, own))
    return isinstance(found, Tensor) == isinstance(own, Tensor) and bool(found == own)


def _state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """What such an optimiser keeps of a parameter once it has made a step."""
    taken = inspect.signature(type(optimizer)).parameters.keys() & optimizer.defaults.keys()
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    twin = type(optimizer)([parameter], **{key: optimizer.defaults[key] for key in taken})
    twin.step()
    return {name for name, value in twin.state[parameter].items() if value is not None}


def _check_moments(stored: Any, names: set[str], parameter: Tensor, where: str) -> None:
    if not isinstance(stored, dict) or not names <= stored.keys():
        found = ", ".join(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{where} has {found} of a parameter, expected {', '.join(sorted(names))}")
    for name in names:
        shape = torch.Size() if name == "step" else parameter.shape
        value = stored[name]
        if not isinstance(value, Tensor) or value.shape != shape or not value.isfinite().all():
            raise ValueError(
                f"{where} has a {name} that is no finite tensor {list(shape)} for its parameter"
            )


def clip_gradients(
    parameters: Iterable[Tensor], *, norm: float | None, value: float | None
) -> Tensor | None:
    """Clip in place: each element to +-value, then all together to a norm (returned, unclipped)."""
    parameters = list(parameters)
    if value is not None:
        for gradient in (p.grad for p in parameters if p.grad is not None):
            gradient.clamp_(-value, value)  # torch's clip_grad_value_ passes over them twice
    if norm is not None:
        return nn.utils.clip_grad_norm_(parameters, norm)
    return None
