"""Captions as one flat token store, and batches of them in the packed layout.

Shapes: B sequences, T longest length, N packed tokens, I images, R regions, F image feature, S
image side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedTokens:
    """A batch of captions to predict: `inputs[k]` is read, `targets[k]` comes next.

    inputs [N], targets [N] int64, time-major, longest caption first; batch_sizes [T] int64, which
    stays on the CPU.
    """

    inputs: Tensor
    targets: Tensor
    batch_sizes: Tensor


@dataclass(frozen=True)
class CaptionBatch:
    """Captions with what each describes, every image once.

    images: [I, R, F] features or [I, 3, S, S] images; image_rows: [B] int64, the image of each
    caption, longest caption first.
    """

    images: Tensor
    image_rows: Tensor
    tokens: PackedTokens

    @property
    def model_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the model's forward takes, and its loss before the targets."""
        return self.images, self.image_rows, self.tokens.inputs, self.tokens.batch_sizes

    @property
    def targets(self) -> Tensor:
        """The tokens to predict, [N]."""
        return self.tokens.targets

    def to(self, device: torch.device) -> CaptionBatch:
        """The same batch with its tensors, but batch_sizes, on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> CaptionBatch:
        """Page-locked copies, so that `to` can overlap with computation (called by DataLoader)."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> CaptionBatch:
        tokens = replace(
            self.tokens, inputs=change(self.tokens.inputs), targets=change(self.tokens.targets)
        )
        return CaptionBatch(change(self.images), change(self.image_rows), tokens)


class TokenStore:
    """Token sequences end to end in one tensor, so that a batch is gathered without a loop.

    Each sequence is stored as `<bos> w1 .. wn <eos>` and has n + 1 predictions.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, bos: int, eos: int) -> None:
        framed = ((bos, *sequence, eos) for sequence in sequences)
        tokens = np.fromiter(chain.from_iterable(framed), np.int64)
        self.tokens = torch.from_numpy(tokens)
        sizes = torch.tensor([len(sequence) + 2 for sequence in sequences], dtype=torch.int64)
        self.lengths = sizes - 1
        self.starts = sizes.cumsum(0) - sizes

    def __len__(self) -> int:
        return len(self.lengths)

    def pack(self, rows: Tensor) -> tuple[PackedTokens, Tensor]:
        """The sequences `rows` [B] packed, and `rows` in the packed order (longest first)."""
        lengths, order = self.lengths[rows].sort(descending=True, stable=True)
        rows = rows[order]
        steps = torch.arange(int(lengths[0])).unsqueeze(1)
        alive = steps < lengths
        where = (steps + self.starts[rows])[alive]
        packed = PackedTokens(self.tokens[where], self.tokens[where + 1], alive.sum(1))
        return packed, rows
