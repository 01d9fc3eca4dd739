"""K models of one architecture in one forward and one backward.

Shapes: K models.

A parameter of theirs is one tensor [K, ...], and that of each model a view of its part, as are the
gradients: optimiser, clipping, checkpoint and validation of each model work as if it were alone.
The code of the first model runs for all of them under torch.vmap (see ops/models.py).
"""

import copy
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captioner.models.attention import MultiHeadAttention
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel
from captioner.models.layered_attention import LayeredAttention
from captioner.models.lstm import LSTM
from captioner.models.stream import StreamModel
from captioner.ops import choose_backend
from captioner.ops.models import Models, Rates, running_as_one
from captioner.training.distributed import SummedLoss
from captioner.training.state import CarriesState
from captioner.training.step import Batch

# What is computed for several models together; on a CPU each with the bits that it has alone on one
# thread.
KINDS = (
    *(Captioner, LayeredAttention, MultiHeadAttention),
    *(StreamModel, LanguageModel, LSTM, nn.Embedding, nn.Linear),
)


class StackedModels:
    """Takes over the parameters of `models`, each of which draws from its own generator.

    ValueError, in one sentence, where they cannot be one computation.
    """

    def __init__(self, models: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        self.models = models
        self._device = next(models[0].parameters()).device
        self._generators, self._numbers = generators, torch.arange(len(models))
        template = together(models)
        self._loss = SummedLoss(template)
        self._template: Any = template
        named = [dict(SummedLoss(one).named_parameters()) for one in models]
        self._parameters = {name: [one[name] for one in named] for name in named[0]}
        self._stacks: dict[str, Tensor] = {}
        for name, of_all in self._parameters.items():
            stack = torch.stack([one.detach() for one in of_all])
            for one, part in zip(of_all, stack, strict=True):
                one.data = part
            self._stacks[name] = stack.requires_grad_(of_all[0].requires_grad)

    def gradients(
        self, group: Sequence[Batch], label_smoothing: float, *, bf16: bool = False
    ) -> tuple[Sequence[Tensor], int]:
        """Give the weights of all models their gradients of a step over a group of batches: what
        `PlainStep.gradients` gives of each, the summed losses K times [], and the tokens. `bf16`,
        on a GPU alone, computes in bfloat16 autocast."""
        tokens = sum(batch.targets.numel() for batch in group)
        total = torch.zeros(len(self.models), dtype=torch.float64, device=self._device)
        for batch in group:
            losses = self.losses(batch.to(self._device), label_smoothing, bf16=bf16)
            (losses / tokens).sum().backward()
            total += losses.detach()
        self.hand_out()
        return total.unbind(), tokens

    def losses(
        self, batch: Any, label_smoothing: float, *, bf16: bool = False, capacity: bool = False
    ) -> Tensor:
        """The summed loss of each model [K], on a batch of the device; `capacity` as of `loss`."""
        call = partial(self._run, capacity=capacity)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            losses, states = torch.vmap(call, in_dims=(0, 0, 0, None, None))(
                self._stacks, self._numbers, self._states(), batch, label_smoothing
            )
        self._keep(states)
        found: Tensor = losses
        return found

    def hand_out(self) -> None:
        """Give each model's weights their part of the gradients."""
        for name, stack in self._stacks.items():
            if stack.grad is not None:
                for own, gradient in zip(self._parameters[name], stack.grad, strict=True):
                    own.grad = gradient

    def release(self) -> None:
        """Forget the gradients, which the models' optimisers have used."""
        for stack in self._stacks.values():
            stack.grad = None

    def part(self) -> None:
        """Give each model memory of its own again."""
        for of_all in self._parameters.values():
            for one in of_all:
                one.data = one.data.clone()

    def _keep(self, states: tuple[Tensor, ...]) -> None:
        for k, model in enumerate(self.models):
            if isinstance(model, CarriesState):
                model.load_carried_state([state[k].detach() for state in states])

    def _states(self) -> tuple[Tensor, ...]:
        """What the models carry from the batch before, each tensor [K, ...]."""
        if not isinstance(self._template, CarriesState):
            return ()
        each = [model.carried_state() for model in self.models]  # type: ignore[operator]
        return tuple(torch.stack(of_all) for of_all in zip(*each, strict=True))

    def _run(
        self,
        parameters: dict[str, Tensor],
        number: Tensor,
        states: tuple[Tensor, ...],
        batch: Any,
        label_smoothing: float,
        *,
        capacity: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of one model, and the state that it carries to the next batch."""
        carries = isinstance(self._template, CarriesState)
        with running_as_one(Models(self._generators, number)):
            if carries:
                self._template.load_carried_state(list(states))
            settings = {"capacity": True} if capacity else {}
            loss: Tensor = torch.func.functional_call(
                self._loss, parameters, (batch, label_smoothing), settings
            )
        return loss, tuple(self._template.carried_state()) if carries else ()


def together(models: Sequence[nn.Module]) -> nn.Module:
    """A model whose code is that of all, with the rates of dropout of each; it shares the tensors
    of the first. ValueError where they differ in anything else."""
    first = models[0]
    shared = {id(one): one for one in (*first.parameters(), *first.buffers())}
    template = copy.deepcopy(first, shared)
    template.train()
    _check_kinds(first)
    for other in models[1:]:
        _check_tensors(first, other)
    for of_all in zip(*(one.named_modules() for one in (template, *models)), strict=False):
        (name, own), *others = of_all
        for key in _settings(others[0][1]):
            where = f"{name}.{key}".lstrip(".")
            values = [vars(module).get(key) for _, module in others]
            setattr(own, key, _merged(where, values))
    return template


def dropping(model: nn.Module) -> tuple[bool, ...]:
    """Which of a model's rates of dropout are above 0.

    Models that differ in them do not compute the same: equal words are read once where a language
    model's input has no dropout.
    """
    rates: list[Any] = []
    for module in model.modules():
        for key in _settings(module):
            value = vars(module)[key]
            if "dropout" in key:
                rates += vars(value).values() if is_dataclass(value) else [value]
    return tuple(rate > 0 for rate in rates)


def _settings(module: nn.Module) -> list[str]:
    return [key for key in vars(module) if not key.startswith("_") and key != "training"]


def _merged(where: str, values: list[Any]) -> Any:
    """One value for all models: the same, or the rates of dropout of each."""
    first = values[0]
    if all(type(one) is type(first) and one == first for one in values):
        return first
    if is_dataclass(first) and all(type(one) is type(first) for one in values):
        return replace(
            first,  # type: ignore[type-var]
            **{
                part.name: _merged(f"{where}.{part.name}", [getattr(x, part.name) for x in values])
                for part in fields(first)
            },
        )
    if "dropout" in where and all(isinstance(one, int | float) for one in values):
        return Rates([float(one) for one in values])
    raise ValueError(f"{where} differs among them: {', '.join(map(str, values))}")


def _check_tensors(first: nn.Module, other: nn.Module) -> None:
    shapes = [
        {name: (list(p.shape), p.requires_grad) for name, p in one.named_parameters()}
        for one in (first, other)
    ]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(f"{name} has another shape in one of them")
    buffers = dict(other.named_buffers())
    for name, buffer in first.named_buffers():
        if name not in buffers or not torch.equal(buffer, buffers[name]):
            raise ValueError(f"{name} differs among them")


def _check_kinds(model: nn.Module) -> None:
    """Refuse what has no form for K models."""
    device = next(model.parameters()).device.type
    for module in model.modules():
        if type(module) not in KINDS:
            raise ValueError(f"{type(module).__name__} is not computed for several models together")
        if isinstance(module, LSTM):
            backend = choose_backend(module.backend, device)
            if backend == "torch":  # which alone has no form for several
                raise ValueError(f"the LSTM {backend} is not computed for several models together")
