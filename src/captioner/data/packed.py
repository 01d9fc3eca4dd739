"""Captions as one flat token store, and batches of them in the packed layout.

Letters: B sequences, T longest length, N packed tokens, I images, R regions, F image feature, S
image side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Batch = TypeVar("Batch", bound="TensorBatch")


@dataclass(frozen=True)
class TensorBatch:
    """A dataclass of tensors, or of such dataclasses, that moves as a whole but for `batch_sizes`,
    which the host reads."""

    def to(self: Batch, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: Batch) -> Batch:
        """Page-locked copies, so that `to` can overlap with computation (called by DataLoader)."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that `stream` uses the tensors, which another stream has made."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def _map(self: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, TensorBatch):
                changed[name] = value._map(change)
            elif name != "batch_sizes":
                changed[name] = change(value)
        return replace(self, **changed)


@dataclass(frozen=True)
class PackedTokens(TensorBatch):
    """Captions to predict: inputs [N] are read, targets [N] (int64) come next.

    Time-major, longest caption first; batch_sizes [T] int64 stays on the CPU.
    """

    inputs: Tensor
    targets: Tensor
    batch_sizes: Tensor


@dataclass(frozen=True)
class CaptionBatch(TensorBatch):
    """Captions with what each describes, every image once: images [I, R, F] or [I, 3, S, S];
    image_rows [B] int64, the image of each caption, longest caption first."""

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


class TokenStore:
    """Sequences `<bos> w1 .. wn <eos>` (n + 1 predictions) end to end in one tensor."""

    def __init__(self, sequences: Sequence[Sequence[int]], *, bos: int, eos: int) -> None:
        tokens = np.fromiter(chain.from_iterable(sequences), np.int64)
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        self._store(tokens, lengths, bos, eos)

    @classmethod
    def of(cls, tokens: np.ndarray, lengths: np.ndarray, *, bos: int, eos: int) -> TokenStore:
        """The store of sequences that lie end to end in `tokens`, with their `lengths`, int64."""
        store = cls.__new__(cls)
        store._store(tokens, lengths, bos, eos)
        return store

    def _store(self, tokens: np.ndarray, lengths: np.ndarray, bos: int, eos: int) -> None:
        sizes = torch.from_numpy(lengths) + 2
        self.lengths = sizes - 1
        self.starts = sizes.cumsum(0) - sizes
        self.tokens = torch.empty(len(tokens) + 2 * len(lengths), dtype=torch.int64)
        inside = torch.ones(len(self.tokens), dtype=torch.bool)
        for places, token in ((self.starts, bos), (self.starts + self.lengths, eos)):
            inside[places] = False
            self.tokens[places] = token
        self.tokens[inside] = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self.lengths)

    def pack(self, rows: Tensor, beside: Tensor | None = None) -> tuple[PackedTokens, Tensor]:
        """The sequences `rows` [B] packed, and `rows`, or what stands `beside` each of them [B], in
        the packed order (longest first)."""
        where, batch_sizes, order = packed_order(self.starts[rows], self.lengths[rows])
        packed = PackedTokens(self.tokens[where], self.tokens[where + 1], batch_sizes)
        return packed, (rows if beside is None else beside)[order]


def packed_order(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences that lie in a flat tensor, packed: the place of each token [N], batch_sizes [T],
    and the order of the sequences [B], longest first and otherwise as given."""
    lengths, order = lengths.sort(descending=True, stable=True)
    steps = torch.arange(int(lengths[0])).unsqueeze(1)
    alive = steps < lengths
    return (steps + starts[order])[alive], alive.sum(1), order
