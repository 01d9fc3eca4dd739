"""Every batch partitioned over the processes that train together, so that their tokens balance."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset


class SizedRows(Protocol):
    """A dataset indexed by a list of rows, which knows how many tokens each row has."""

    tokens_per_row: Tensor

    def __getitem__(self, rows: Sequence[int]) -> Any:
        """The batch of these rows."""


def balanced_partition(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Positions 0 to len(sizes) - 1 in `parts` lists whose sums of sizes balance.

    The longest goes first, each to the list with the smallest sum so far (Graham 1969), the earlier
    at a tie: nothing is random. Two sums differ by at most the longest size, and no list is empty
    while there are at least as many positions, of size 1 or more.
    """
    partition: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for position in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        load, part = loads[0]
        partition[part].append(position)
        heapq.heapreplace(loads, (load + sizes[position], part))
    return partition


class BatchShard(Dataset[Any]):
    """One rank's part of every batch of `dataset`; None where the batch is too small for all."""

    def __init__(self, dataset: SizedRows, *, rank: int, size: int) -> None:
        self.dataset, self.rank, self.size = dataset, rank, size

    def __getitem__(self, rows: Sequence[int]) -> Any:
        sizes = self.dataset.tokens_per_row[list(rows)].tolist()
        mine = balanced_partition(sizes, self.size)[self.rank]
        return self.dataset[[rows[k] for k in mine]] if mine else None
