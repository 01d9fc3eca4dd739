"""One batch of captions to run an LSTM over, in the packed layout.

Shapes: B sequences, T longest length, N packed tokens, U distinct rows among them, H hidden size
(= input size E).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.captions import WORDS, steps_of_sequences, word_ranks
from benchmarks.record import Axes

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # whose products may round operands to ten bits of mantissa
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    lengths: str
    dtype: str
    hidden_size: int
    batch_size: int

    @property
    def axes(self) -> Axes:
        """As figures and requirements carry them."""
        sizes: Axes = {"H": self.hidden_size, "B": self.batch_size}
        return {"lengths": self.lengths, "dtype": self.dtype, **sizes}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.axes.items())


def grid(
    *,
    lengths: Sequence[str],
    dtypes: Sequence[str],
    hidden_sizes: Sequence[int],
    batch_sizes: Sequence[int],
) -> list[Cell]:
    """Every combination, the batch size changing fastest."""
    return [Cell(*one) for one in itertools.product(lengths, dtypes, hidden_sizes, batch_sizes)]


@dataclass(frozen=True)
class Case:
    """A cell's batch: token n reads row input_rows[n] of `table`, as words do of an embedding."""

    table: Tensor  # [U, E]
    input_rows: Tensor  # [N] int64
    batch_sizes: Tensor  # [T] int64 on the CPU
    grad_output: Tensor  # [N, H]
    layer: nn.LSTM

    @property
    def rows(self) -> Tensor:
        """The input of every packed token, [N, E]."""
        return self.table[self.input_rows]

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.input_rows)

    @property
    def hidden_size(self) -> int:
        """H, which is also E."""
        return self.layer.hidden_size


def make_case(cell: Cell, *, device: torch.device, seed: int, data_root: str | None = None) -> Case:
    """The batch of `cell`, drawn from `seed`, and a layer with its first weights."""
    hidden, dtype = cell.hidden_size, DTYPES[cell.dtype]
    drawn = steps_of_sequences(cell.lengths, cell.batch_size, seed=seed, data_root=data_root)
    steps = torch.arange(int(drawn.max())).unsqueeze(1)
    batch_sizes = (steps < torch.from_numpy(drawn)).sum(1)
    ids = _token_ids(batch_sizes, seed=seed)
    distinct, input_rows = ids.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(distinct), hidden, generator=generator)
    grad_output = torch.randn(len(ids), hidden, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.LSTM(hidden, hidden).to(device, dtype)
    return Case(
        table=table.to(device, dtype),
        input_rows=input_rows.to(device),
        batch_sizes=batch_sizes,
        grad_output=grad_output.to(device, dtype),
        layer=layer,
    )


def _token_ids(batch_sizes: Tensor, *, seed: int) -> Tensor:
    """What each packed token is, [N]: B images, of which none is twice, then <bos>, then words."""
    images, tokens = int(batch_sizes[0]), int(batch_sizes.sum())
    ids = torch.from_numpy(word_ranks(tokens, seed=seed))
    ids[:images] = WORDS + 1 + torch.arange(images)
    ids[images : images + int(batch_sizes[1:2].sum())] = WORDS
    return ids
