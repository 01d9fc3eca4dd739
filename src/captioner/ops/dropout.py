"""Dropout whose random numbers cost less on a CPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

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
    of the rounded probability, so the mean stays exact. Raises ValueError unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {p}")
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
