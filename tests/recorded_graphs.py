"""CUDA's graphs replaced by a recording: what is captured is not executed, as on a GPU, and is
executed by a replay."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor


class Recording:
    """In the place of torch.cuda.CUDAGraph: the calls that were made while it was captured."""

    open: Recording | None = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.generators: list[torch.Generator] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def pool(self) -> int:
        return 1

    def replay(self) -> None:
        for call in self.calls:
            call()


def kept_alive() -> list[Tensor]:
    """Every tensor that was computed from something with a gradient, and is still there.

    Since `recorded_graphs` began: what earlier tests have left behind is not looked through.
    """
    gc.collect()
    tensors = (x for x in gc.get_objects() if issubclass(type(x), Tensor))
    return [x for x in tensors if x.grad_fn is not None]


@contextmanager
def capturing(graph: Recording, **_: Any) -> Iterator[None]:
    # Its graph has nodes of another stream than the one that is captured: CUDA ends the capture.
    assert kept_alive() == []
    Recording.open = graph
    yield
    Recording.open = None


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


def recording_call(take: Callable[[int], None], counts: dict[int, int]) -> Callable[[int], None]:
    """`take`, recorded while a graph is captured and counted by key before."""

    def call(key: int) -> None:
        if Recording.open is not None:
            Recording.open.calls.append(lambda: take(key))
        else:
            counts[key] = counts.get(key, 0) + 1
            take(key)

    return call


@pytest.fixture
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.freeze()
    for name, stand_in in {
        "CUDAGraph": Recording,
        "graph": capturing,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    yield
    gc.unfreeze()
