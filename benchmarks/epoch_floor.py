"""What a pass cannot be faster than: its matrix products at the rate that this device multiplies,
and the bytes that the optimiser moves at the rate that it copies. Both rates are measured.

Shapes: B captions a batch, N tokens to predict, E = H embedding and hidden, V vocabulary, F image
feature.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

COPIED = {"cuda": 1 << 28, "cpu": 1 << 24}  # bytes; more than a cache holds
ADAM_FLOATS = 7  # weight, gradient, both moments read; weight and both moments written


@dataclass(frozen=True)
class Floor:
    """Seconds of one step's two parts."""

    products: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """Both: neither can hide behind the other, which needs its results."""
        return self.products + self.optimizer


def step_floor(
    *,
    batch: int,
    tokens: int,
    hidden: int,
    vocab_size: int,
    feature_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Floor:
    """The floor of a step over a batch of so many captions and tokens to predict.

    The products are torch's own: forward and both gradients of the image projection (its input has
    none), the LSTM's two and the vocabulary's. Half precision also writes shadow weights.
    """
    shapes = [
        (batch, feature_dim, hidden, False),
        (tokens + batch, hidden, 4 * hidden, True),
        (tokens, hidden, 4 * hidden, True),  # the image's step has no state yet
        (tokens, hidden, vocab_size, True),
    ]
    calls = [
        call
        for rows, inputs, outputs, wants_input in shapes
        for call in _linear(rows, inputs, outputs, wants_input, dtype, device)
    ]
    weights = hidden * (feature_dim + 8 * hidden + 2 * vocab_size)
    moved = weights * (4 * ADAM_FLOATS + (2 if dtype is torch.bfloat16 else 0))
    return Floor(
        products=sum(seconds_a_call(call, device) for call in calls),
        optimizer=moved / bytes_a_second(device),
    )


def _linear(
    rows: int, inputs: int, outputs: int, wants_input: bool, dtype: torch.dtype,
    device: torch.device,
) -> list[Callable[[], Tensor]]:  # fmt: skip
    """Forward and gradients of one linear layer, into memory that is there already."""
    x, y, w = (
        torch.rand(*shape, device=device, dtype=dtype)
        for shape in ((rows, inputs), (rows, outputs), (outputs, inputs))
    )
    out, dw, dx = torch.empty_like(y), torch.empty_like(w), torch.empty_like(x)
    calls: list[Callable[[], Tensor]] = [
        lambda: torch.mm(x, w.t(), out=out),
        lambda: torch.mm(y.t(), x, out=dw),
    ]
    return [*calls, lambda: torch.mm(y, w, out=dx)] if wants_input else calls


@lru_cache
def bytes_a_second(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    copied = COPIED[device.type]
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * copied / seconds_a_call(lambda: target.copy_(source), device)


def seconds_a_call(
    call: Callable[[], object], device: torch.device, *, calls: int = 20, repeats: int = 5
) -> float:
    """The least seconds a call of several rounds; the device is never idle between two calls."""
    many = _captured(call, calls) if device.type == "cuda" else _repeated(call, calls)
    taken = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        many()
        synchronize(device)
        taken.append((time.perf_counter() - started) / calls)
    return min(taken[1:])


def _repeated(call: Callable[[], object], calls: int) -> Callable[[], None]:
    def many() -> None:
        for _ in range(calls):
            call()

    return many


def _captured(call: Callable[[], object], calls: int) -> Callable[[], None]:
    """The calls as one CUDA graph: the host takes longer to launch a small one than it runs."""
    call()  # libraries take their memory now
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _repeated(call, calls)()
    replay: Callable[[], None] = graph.replay
    return replay


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
