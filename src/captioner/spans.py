"""Named parts of a training step, for whoever wants to know where its time goes.

Models say where a part begins and ends; a clock or a profiler listens while it wants to. Nobody
listening costs one comparison a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from torch import Tensor

_NOTHING: AbstractContextManager[None] = nullcontext()
_listener: Listener | None = None


class Listener(Protocol):
    """What is told about the parts."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """A context around the part `name`."""

    def ended(self, name: str) -> None:
        """The part `name`, which began where the one before it ended, is over."""


def span(name: str) -> AbstractContextManager[None]:
    """A context around a part of the step."""
    return _NOTHING if _listener is None else _listener.span(name)


def backward_ends(name: str, tensor: Tensor) -> None:
    """Say that the backward of the part `name` is over once `tensor` has its gradient."""
    if _listener is not None and tensor.requires_grad:
        listener = _listener
        tensor.register_hook(lambda gradient: listener.ended(name))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` about all parts while the context is open."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
