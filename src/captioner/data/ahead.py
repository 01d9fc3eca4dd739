"""Batches that lie on a GPU before they are asked for."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from captioner.data.packed import TensorBatch

Moved = tuple[TensorBatch | None, torch.cuda.Event | None]


class BatchesAhead:
    """The batches of `loader` on `device`, each made and copied while the one before is used.

    A thread asks the loader, whose batches are best page-locked, and on CUDA copies in a stream of
    its own. Nothing but the order in time is changed, so a run resumes as without. Errors of the
    loader are raised where its batch would have come.
    """

    def __init__(self, loader: Iterable[TensorBatch | None], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[TensorBatch | None]:
        on_gpu = self.device.type == "cuda"
        stream = torch.cuda.Stream(self.device) if on_gpu else None
        batches = iter(self.loader)

        def moved() -> Moved | None:
            with torch.cuda.stream(stream):  # and its device; None changes nothing
                try:
                    batch = next(batches)
                except StopIteration:
                    return None
                if batch is None:  # a rank's share of a batch that is too small for all
                    return None, None
                on_device = batch.to(self.device)
                return on_device, None if stream is None else stream.record_event()

        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(moved)
            while (found := waiting.result()) is not None:
                waiting = thread.submit(moved)
                batch, event = found
                if batch is not None and event is not None:
                    current = torch.cuda.current_stream(self.device)
                    current.wait_event(event)
                    batch.record_stream(current)  # its memory belongs to the other stream
                yield batch
