"""A linear map that a loop applies once a step: the gradient of its weight is one product.

Autograd would make a gradient as large as the weight at every step and add it to the sum of the
others, which for a short batch costs more than the step itself. Here a step's backward computes
the gradient of its input alone and keeps its rows; when all steps are done, their rows side by
side give the weight's gradient in one product, as in backpropagation through time within
`lstm_packed`.

Shapes: B rows at a step, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Of each step its inputs and the gradient of its outputs, once its backward has come.
Rows = list[tuple[Tensor, Tensor] | None]


class RepeatedLinear:
    """x W' + b for a weight W [O, I] and a bias b [O], or none; made anew for every loop.

    Under autocast both are cast once, not at every step.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        device_type = weight.device.type
        if torch.is_autocast_enabled(device_type) and weight.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device_type)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.weight = weight.detach()
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        self._rows: Rows = []
        trained = torch.is_grad_enabled() and weight.requires_grad
        self._end = _WeightGradient.apply(weight, bias, self._rows) if trained else None

    @classmethod
    def of(cls, layer: nn.Linear) -> RepeatedLinear:
        """That of a layer."""
        return cls(layer.weight, layer.bias)

    def __call__(self, input: Tensor, plus: Tensor | None = None) -> Tensor:
        """The outputs [B, O] of `input` [B, I]; `plus` [B, O] is added in place of the bias."""
        input, plus = input.to(self.weight.dtype), self.bias if plus is None else plus
        plus = plus.to(self.weight.dtype)
        if self._end is None:
            return torch.addmm(plus, input, self.weight.t())
        found: Tensor = _Step.apply(input, plus, self.weight, self._end, self._rows)
        return found


class _Step(torch.autograd.Function):
    """One step; `end` [0] makes its backward come before the weight's gradient."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, plus: Tensor, weight: Tensor, end: Tensor, rows: Rows
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.rows, ctx.step = rows, len(rows)
        rows.append(None)
        return torch.addmm(plus, input, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        ctx.rows[ctx.step] = (input, grad)
        before = grad @ weight if ctx.needs_input_grad[0] else None
        of_plus = grad if ctx.needs_input_grad[1] else None
        return before, of_plus, None, grad.new_zeros(0), None


class _WeightGradient(torch.autograd.Function):
    """Comes before all steps, so that its backward comes after theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        ctx.rows = rows
        return weight.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        done = [step for step in ctx.rows if step is not None]
        ctx.rows[:] = [None] * len(ctx.rows)
        inputs, grads = (torch.cat(parts) for parts in zip(*done, strict=True))
        of_bias = grads.sum(0) if ctx.needs_input_grad[1] else None
        return grads.t() @ inputs, of_bias, None
