"""Captions as one flat token store, and batches of them in the packed layout.

Letters: B sequences, T longest length, N packed tokens, I images, R regions, F image feature, S
image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
            elif name != "batch_sizes" and value is not None:
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
    image_rows [B] int64, the image of each caption, longest caption first.

    image_numbers [I] int64: which of their split's images these are; weights [N]: of the targets'
    cross-entropy in the summed loss, None for 1.
    """

    images: Tensor
    image_rows: Tensor
    tokens: PackedTokens
    image_numbers: Tensor | None = None
    weights: Tensor | None = None

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
        framed = ((bos, *sequence, eos) for sequence in sequences)
        self._keep(_end_to_end(framed), np.array([len(x) + 2 for x in sequences], np.int64))

    @classmethod
    def of(cls, tokens: np.ndarray, lengths: np.ndarray, *, bos: int, eos: int) -> TokenStore:
        """The store of sequences that lie end to end in `tokens`, with their `lengths`, int64."""
        sizes = lengths + 2
        ends = sizes.cumsum()
        framed = np.empty(len(tokens) + 2 * len(lengths), np.int64)
        inside = np.ones(len(framed), bool)
        for places, token in ((ends - sizes, bos), (ends - 1, eos)):
            inside[places] = False
            framed[places] = token
        framed[inside] = tokens
        store = cls.__new__(cls)
        store._keep(framed, sizes)
        return store

    @classmethod
    def of_framed(cls, sequences: Sequence[Sequence[int]]) -> TokenStore:
        """Sequences as they are: they begin with `<bos>`, and may end without `<eos>`."""
        store = cls.__new__(cls)
        store._keep(_end_to_end(sequences), np.array([len(x) for x in sequences], np.int64))
        return store

    def _keep(self, framed: np.ndarray, sizes: np.ndarray) -> None:
        self.tokens = torch.from_numpy(framed)
        counts = torch.from_numpy(sizes)
        self.lengths = counts - 1
        self.starts = counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.lengths)

    def pack(self, rows: Tensor, beside: Tensor | None = None) -> tuple[PackedTokens, Tensor]:
        """The sequences `rows` [B] packed, and `rows`, or what stands `beside` each of them [B], in
        the packed order (longest first)."""
        where, batch_sizes, order = packed_order(self.starts[rows], self.lengths[rows])
        packed = PackedTokens(self.tokens[where], self.tokens[where + 1], batch_sizes)
        return packed, (rows if beside is None else beside)[order]


def _end_to_end(sequences: Iterable[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(sequences), np.int64)


def packed_order(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences that lie in a flat tensor, packed: the place of each token [N], batch_sizes [T],
    and the order of the sequences [B], longest first and otherwise as given."""
    lengths, order = lengths.sort(descending=True, stable=True)
    steps = torch.arange(int(lengths[0])).unsqueeze(1)
    alive = steps < lengths
    return (steps + starts[order])[alive], alive.sum(1), order
