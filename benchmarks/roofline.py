"""The roofline of a training step: its GEMMs and the optimiser's bytes, at measured rates.

Shapes: B captions a batch, N tokens, E = H embedding and hidden, V vocabulary, F image feature.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor

from benchmarks.timing import seconds_a_call

COPIED = {"cuda": 1 << 28, "cpu": 1 << 24}  # bytes; more than a cache holds
ADAM_FLOATS = 7  # weight, gradient, both moments read; weight and both moments written


@dataclass(frozen=True, kw_only=True)
class Gemms:
    """The GEMMs of a step, each as one of torch's, into memory that is kept from step to step: a
    bound for a step that multiplies every token's embedding."""

    hidden: int
    vocab_size: int
    feature_dim: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def calls(self, batch: int, tokens: int) -> list[Callable[[], Tensor]]:
        """Forward and both gradients of the image projection (its input has none), the LSTM's two
        products and the vocabulary's, for a batch of so many captions and tokens to predict."""
        h = self.hidden
        return [
            *self.linear("image", batch, self.feature_dim, h, input_gradient=False),
            *self.linear("weight_ih", tokens + batch, h, 4 * h),
            *self.linear("weight_hh", tokens, h, 4 * h),  # the image's step has no state yet
            *self.linear("vocabulary", tokens, h, self.vocab_size),
        ]

    def linear(
        self, name: str, rows: int, inputs: int, outputs: int, *, input_gradient: bool = True
    ) -> Iterator[Callable[[], Tensor]]:
        """Forward, the weight's gradient and the input's of a layer on [rows, inputs]."""
        widths = {"x": inputs, "y": outputs, "out": outputs}
        x, y, out = (self._matrix(f"{name} {one}", rows, wide) for one, wide in widths.items())
        w, dw = (self._matrix(f"{name} {one}", outputs, inputs) for one in ("w", "dw"))
        yield partial(torch.mm, x, w.t(), out=out)
        yield partial(torch.mm, y.t(), x, out=dw)
        if input_gradient:
            yield partial(torch.mm, y, w, out=self._matrix(f"{name} dx", rows, inputs))

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        kept = self.buffers.get(name)
        if kept is None or len(kept) < rows:
            drawn = torch.rand(rows + rows // 2, columns, device=self.device, dtype=self.dtype)
            kept = self.buffers[name] = drawn
        return kept[:rows]


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step's two parts."""

    gemms: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """Both: neither can overlap with the other, which needs its results."""
        return self.gemms + self.optimizer


def step_roofline(gemms: Gemms, *, batch: int, tokens: int) -> Roofline:
    """The roofline of an Adam step; half precision also writes shadow weights."""
    times = [seconds_a_call(call, gemms.device) for call in gemms.calls(batch, tokens)]
    weights = gemms.hidden * (gemms.feature_dim + 8 * gemms.hidden + 2 * gemms.vocab_size)
    moved = weights * (4 * ADAM_FLOATS + (2 if gemms.dtype is torch.bfloat16 else 0))
    return Roofline(gemms=sum(times), optimizer=moved / bytes_a_second(gemms.device))


@lru_cache
def bytes_a_second(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    copied = COPIED[device.type]
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * copied / seconds_a_call(lambda: target.copy_(source), device)
