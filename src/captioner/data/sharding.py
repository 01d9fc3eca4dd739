"""Every batch partitioned over the processes that train together, so that their tokens balance."""

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from captioner.data.dataset import CaptionDataset


def balanced_partition(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Positions of `sizes` in `parts` lists whose sums of sizes balance; nothing is random.

    The longest goes first, each to the list with the smallest sum so far, the earlier at a tie
    (Graham 1969): two sums differ by at most the longest size, and no list is empty while there are
    at least as many positions, of size 1 or more.
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

    def __init__(self, dataset: CaptionDataset, *, rank: int, size: int) -> None:
        self.dataset, self.rank, self.size = dataset, rank, size

    def __getitem__(self, rows: Sequence[int]) -> Any:
        tokens = self.dataset.tokens_per_row
        sizes = tokens[torch.as_tensor(rows) % len(tokens)].tolist()  # of all views the same
        mine = balanced_partition(sizes, self.size)[self.rank]
        return self.dataset[[rows[k] for k in mine]] if mine else None
