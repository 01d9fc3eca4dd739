"""Batches made ahead of their use: the same, in the same order, and no thread is left over."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from graph_runs import make_dataset

from captioner.data.ahead import BatchesAhead
from captioner.data.dataset import BatchOrder, make_loader
from captioner.data.packed import CaptionBatch, TensorBatch
from captioner.errors import DataError

CPU = torch.device("cpu")


class Recorded:
    """Three batches, or an error in the place of the last; `asked` counts those asked for."""

    def __init__(self, *, failing: bool = False) -> None:
        self.asked, self.failing = 0, failing
        self.second = threading.Event()

    def __iter__(self) -> Iterator[CaptionBatch | None]:
        dataset = make_dataset()
        for number in range(3):
            self.asked += 1
            if number == 1:
                self.second.set()
            if number == 2 and self.failing:
                raise DataError("the third is missing")
            yield None if number == 1 else dataset[[number]]


def tensors(batch: TensorBatch | None) -> list[torch.Tensor]:
    assert isinstance(batch, CaptionBatch)
    return [*batch.model_inputs, batch.targets]


@pytest.mark.parametrize("position", [0, 3])
def test_batches_are_those_of_the_loader(position: int) -> None:
    dataset = make_dataset()
    orders = [BatchOrder(len(dataset), batch_size=4, seed=1) for _ in range(2)]
    plain, ahead = (make_loader(dataset, order, workers=0) for order in orders)
    for epoch in (0, 1):
        for order in orders:
            order.epoch, order.position = epoch, position
        found = [tensors(batch) for batch in BatchesAhead(ahead, CPU)]
        torch.testing.assert_close(found, [tensors(batch) for batch in plain], rtol=0, atol=0)
        assert len(found) == len(orders[0]) - position


def test_the_next_batch_is_made_while_one_is_used() -> None:
    loader = Recorded()
    batches = iter(BatchesAhead(loader, CPU))
    assert next(batches) is not None
    assert loader.second.wait(10)
    assert next(batches) is None  # a share that is empty is no end
    assert next(batches) is not None
    assert next(batches, "end") == "end"


def test_an_error_comes_where_its_batch_would_and_no_thread_stays() -> None:
    threads = threading.active_count()
    batches = iter(BatchesAhead(Recorded(failing=True), CPU))
    assert next(batches) is not None and next(batches) is None
    with pytest.raises(DataError, match="the third is missing"):
        next(batches)
    assert threading.active_count() == threads


def test_stopping_early_ends_the_thread() -> None:
    threads = threading.active_count()
    batches = iter(BatchesAhead(Recorded(), CPU))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a stream of its own needs a GPU")
def test_batches_arrive_whole_on_a_gpu() -> None:
    dataset = make_dataset()
    order = BatchOrder(len(dataset), batch_size=4, seed=1)
    device = torch.device("cuda")
    ahead = BatchesAhead(make_loader(dataset, order, workers=0, pin_memory=True), device)
    plain = make_loader(dataset, order, workers=0)
    for found, expected in zip(ahead, plain, strict=True):
        moved = [tensor.cpu() for tensor in tensors(found)]
        torch.testing.assert_close(moved, tensors(expected), rtol=0, atol=0)
        assert isinstance(found, CaptionBatch) and found.images.is_cuda
