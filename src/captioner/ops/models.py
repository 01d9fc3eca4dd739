"""K models of one architecture in one call of each operator: their code under torch.vmap.

Shapes: K models.

A model's own code runs once for all K, on tensors that torch.vmap gives a hidden leading K. The
operators of csrc/ then compute all models in one call; dropout draws for each model what it would
draw alone, from its own generator and at its own rate.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT = 64  # bytes, of what torch allocates on a CPU


class Rates(float):
    """A rate of dropout for each of K models; as a number, the largest of them."""

    each: tuple[float, ...]

    def __new__(cls, each: Sequence[float]) -> "Rates":
        """K rates."""
        rates = super().__new__(cls, max(each))
        rates.each = tuple(each)
        return rates


@dataclass(frozen=True)
class Models:
    """K models that run as one: a generator each, and under vmap a number each."""

    generators: Sequence[torch.Generator]
    number: Tensor  # [], from 0 to K - 1


class _Thread(threading.local):
    """The models that this thread runs as one."""

    models: Models | None = None


_thread = _Thread()


@contextmanager
def running_as_one(models: Models) -> Iterator[None]:
    """A context, within torch.vmap over K models, in which `dropout` and `embedding` are theirs."""
    before, _thread.models = _thread.models, models
    try:
        yield
    finally:
        _thread.models = before


def models_as_one() -> Models | None:
    """The models that this thread runs as one."""
    return _thread.models


def _stacked(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """With a leading K what vmap has in dimension `dim`, or what all K models share."""
    return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _Stacked(torch.autograd.Function):
    """`_Stacked.apply(compute, *tensors)`, within vmap: what `compute` makes of the tensors with a
    leading K, which has a leading K too."""

    @staticmethod
    def forward(compute: Any, *tensors: Tensor) -> Tensor:
        """Never called: vmap alone computes it."""
        raise NotImplementedError("what several models compute needs torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """torch.vmap asks for it."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], compute: Any, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        """[K, ...]; autograd follows."""
        pairs = zip(tensors, in_dims[1:], strict=True)
        return compute(*(_stacked(x, dim, info.batch_size) for x, dim in pairs)), 0


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """torch.index_select of a `dim` from 0; of K models, which share the index, a copy of rows as
    alone, where vmap's rule for torch's gathers single numbers."""
    if _thread.models is None:
        return input.index_select(dim, index)
    found: Tensor = _Stacked.apply(lambda stack: stack.index_select(dim + 1, index), input)
    return found


def placed(rows: Tensor, slots: Tensor, count: int) -> Tensor:
    """Rows [N, D] at `slots` [N] of [count, D], whose others are 0; of K models in their slots."""
    if _thread.models is None:
        return rows.new_zeros(count, rows.shape[1]).index_copy(0, slots, rows)

    def place(stack: Tensor) -> Tensor:
        return stack.new_zeros(len(stack), count, stack.shape[2]).index_copy(1, slots, stack)

    found: Tensor = _Stacked.apply(place, rows)
    return found


def embedding(token_ids: Tensor, table: Tensor) -> Tensor:
    """torch.nn.functional.embedding of a table [V, E]; of K models, without copying the tables, as
    vmap's rule for torch's does."""
    if _thread.models is None:
        return F.embedding(token_ids, table)
    return index_select(table, 0, token_ids)


def linear(rows: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer with a bias, of rows [..., I]. On a CPU of K models one after another, each
    with the bits that it has alone, and into memory that lies as the weights [K, O, I] do; on a
    GPU as one batched GEMM."""
    if _thread.models is None or rows.device.type != "cpu":
        found: Tensor = layer(rows)
        return found
    stacked = (rows.flatten(0, -2), layer.weight, layer.bias)
    found = _Stacked.apply(_LinearOfModels.apply, *stacked)
    return found.view(*rows.shape[:-1], -1)


class _LinearOfModels(torch.autograd.Function):
    """Rows [K, N, I] by weights [K, O, I] and biases [K, O]: [K, N, O]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Model by model."""
        ctx.save_for_backward(rows, weight)
        found = rows.new_empty(*rows.shape[:2], weight.shape[1])
        for k, own in enumerate(found):
            torch.addmm(bias[k], _aligned(rows[k]), _aligned(weight[k]).t(), out=own)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Likewise."""
        rows, weight = ctx.saved_tensors
        of_rows = gradient.new_empty(rows.shape) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight)
        of_bias = gradient.new_empty(weight.shape[:2])
        for k in range(len(weight)):
            own = _aligned(gradient[k])
            if of_rows is not None:
                torch.mm(own, _aligned(weight[k]), out=of_rows[k])
            torch.mm(own.t(), _aligned(rows[k]), out=of_weight[k])
            torch.sum(own, 0, out=of_bias[k])
        return of_rows, of_weight, of_bias


def _aligned(part: Tensor) -> Tensor:
    """A model's part of a stack, copied unless it begins where a tensor of its own might: elsewhere
    torch's BLAS rounds otherwise."""
    return part if part.data_ptr() % ALIGNMENT == 0 else part.clone()


def each_item(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What `compute` makes of tensors [I, ...], each of whose items it computes by itself; of K
    models one call with all their items, K times as many."""
    if _thread.models is None:
        return compute(*tensors)

    def compute_all(*stacked: Tensor) -> Tensor:
        return compute(*(x.flatten(0, 1) for x in stacked)).unflatten(0, (len(stacked[0]), -1))

    found: Tensor = _Stacked.apply(compute_all, *tensors)
    return found


def register_models(
    name: str, compute: Callable[..., Any], names: Sequence[str], shared: Sequence[str]
) -> None:
    """Make the operator `name` under torch.vmap one call of `compute`, which is the operator itself
    where nothing else is to be done, with a leading K.

    `names` are its arguments' in their order; those in `shared` have no leading K: under vmap they
    must be the same for all models, NotImplementedError otherwise.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        stacked = list(arguments)
        given = zip(names[: len(arguments)], arguments, in_dims, strict=True)
        for k, (argument_name, argument, dim) in enumerate(given):
            if not isinstance(argument, Tensor) or argument_name in shared:
                if dim is not None:
                    raise NotImplementedError(f"{argument_name} must be the same for all models")
            else:
                stacked[k] = _stacked(argument, dim, info.batch_size)
        found = compute(*stacked)
        return found, (0,) * len(found)

    torch.library.register_vmap(name, rule)


def one_after_another(
    compute: Callable[[Any], tuple[Tensor, ...]], arguments: Any, shared: Sequence[str]
) -> tuple[Tensor, ...]:
    """What `compute` gives of a named tuple of arguments with a leading K: of each model, stacked.
    The readable twin of the operators' leading K."""
    own = {
        name: value
        for name, value in arguments._asdict().items()
        if isinstance(value, Tensor) and name not in shared
    }
    count = len(next(iter(own.values())))
    found = [
        compute(arguments._replace(**{name: value[k] for name, value in own.items()}))
        for k in range(count)
    ]
    return tuple(torch.stack(of_all) for of_all in zip(*found, strict=True))
