"""Partition of a batch over ranks: every row once, sums of tokens that balance."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.sharding import BatchShard, balanced_partition
from captioner.training.distributed import World


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 7))
def test_tokens_balance_and_nothing_is_lost(sizes: list[int], parts: int) -> None:
    partition = balanced_partition(sizes, parts)
    assert sorted(position for part in partition for position in part) == list(range(len(sizes)))
    sums = [sum(sizes[position] for position in part) for part in partition]
    assert max(sums) - min(sums) <= max(sizes)
    assert sum(bool(part) for part in partition) == min(parts, len(sizes))
    assert partition == balanced_partition(sizes, parts)


@given(st.integers(0, 1000), st.integers(1, 7))
def test_the_ranks_shares_of_a_row_are_all_of_it_once(count: int, size: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [k for share in shares for k in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Rows:
    """A dataset whose batches are the rows themselves."""

    tokens_per_row = torch.tensor([5, 1, 3, 4])

    def __getitem__(self, rows: list[int]) -> list[int]:
        return list(rows)


def test_a_batch_too_small_for_all_leaves_some_without() -> None:
    assert [BatchShard(Rows(), rank=r, size=2)[[3, 0, 2, 1]] for r in (0, 1)] == [[0, 1], [3, 2]]
    assert [BatchShard(Rows(), rank=r, size=3)[[2]] for r in range(3)] == [[2], None, None]


def test_views_of_a_row_are_partitioned_as_the_row_is() -> None:
    batch, views = [3, 0, 2, 1], [7, 0, 6, 5]  # of four rows
    for rank in (0, 1):
        plain = BatchShard(Rows(), rank=rank, size=2)[batch]
        assert [row % 4 for row in BatchShard(Rows(), rank=rank, size=2)[views]] == plain
