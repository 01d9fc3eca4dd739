"""Dropout whose random numbers cost less on a CPU."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.ops.models import Models, Rates, models_as_one

LEVELS = 2**16


class _Source(threading.local):
    """Where this thread draws from; None is torch's own generator, which all threads share."""

    generator: torch.Generator | None = None


_source = _Source()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """While open, this thread's dropout on a CPU draws from `generator`."""
    before, _source.generator = _source.generator, generator
    try:
        yield
    finally:
        _source.generator = before


def dropout(input: Tensor, p: float, training: bool) -> Tensor:
    """torch.nn.functional.dropout; on a CPU p is rounded to a multiple of 1/65536.

    There torch draws a 53-bit number for each element, one after another on one thread: a tenth of
    a training step, as measured. Sixteen random bits an element decide as well, and
    one draw of torch's generator has four times as many. What is kept is scaled by the reciprocal
    of the rounded probability, so the mean stays exact. Where K models run as one, each draws
    from its own generator, on a CPU what it would draw alone; p may then be `Rates`. Raises
    ValueError unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {p}")
    models = models_as_one()
    if models is not None:
        return _of_models(input, p, models) if training and p > 0 else input
    dropped = round(p * LEVELS)
    if not training or dropped in (0, LEVELS) or input.device.type != "cpu":
        return F.dropout(input, p, training)
    drawn = torch.empty(-(-input.numel() // 4), dtype=torch.int64)
    if _source.generator is None:
        drawn.random_(-(2**63), None)
    else:
        drawn.random_(-(2**63), None, generator=_source.generator)
    kept = drawn.view(torch.int16)[: input.numel()] >= dropped - LEVELS // 2
    scale = kept.to(input.dtype).mul_(LEVELS / (LEVELS - dropped))
    return input * scale.view(input.shape)


def _of_models(input: Tensor, p: float, models: Models) -> Tensor:
    rates = p.each if isinstance(p, Rates) else (p,) * len(models.generators)
    dropped: Tensor = _OfModels.apply(input, models.number, rates, models.generators)
    return dropped


class _OfModels(torch.autograd.Function):
    """Dropout of rows that K models have under vmap, or share."""

    @staticmethod
    def forward(input: Tensor, number: Tensor, rates: Any, generators: Any) -> Tensor:
        """Never called: vmap alone computes it."""
        raise NotImplementedError("dropout of several models needs torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """torch.vmap asks for it."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,  # [K, ...], or [...] where the models share it
        number: Tensor,
        rates: Sequence[float],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, int]:
        """The rows of all models [K, ...]; autograd follows."""
        rows = input.unsqueeze(0) if in_dims[0] is None else input.movedim(in_dims[0], 0)
        if rows.device.type == "cpu":
            scale = _drawn_here(rows, rates, generators)
        else:
            scale = _drawn_on_device(rows, rates, generators)
        return rows * scale.view(len(rates), *rows.shape[1:]), 0


def _drawn_here(
    rows: Tensor,  # [K, ...], or [1, ...] where the models share them
    rates: Sequence[float],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """By what each number of each model's rows is multiplied, [K, n], on a CPU."""
    scale = rows.new_empty(len(rates), rows[0].numel())
    drawn = torch.empty(-(-scale.shape[1] // 4), dtype=torch.int64)
    # One model after another, while its numbers are in the processor's cache.
    for own, rate, generator in zip(scale, rates, generators, strict=True):
        dropped = round(rate * LEVELS)
        if dropped in (0, LEVELS):
            own.fill_(dropped == 0)
            continue
        drawn.random_(-(2**63), None, generator=generator)
        kept = drawn.view(torch.int16)[: len(own)] >= dropped - LEVELS // 2
        own.copy_(kept).mul_(LEVELS / (LEVELS - dropped))
    return scale


def _drawn_on_device(
    rows: Tensor,  # [K, ...], or [1, ...] where the models share them
    rates: Sequence[float],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Likewise on another device: nothing is copied from the host."""
    scale = rows.new_empty(len(rates), rows[0].numel())
    for own, rate, generator in zip(scale, rates, generators, strict=True):
        if rate in (0, 1):
            own.fill_(1 - rate)
        else:
            own.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
    return scale
