"""Named parts of a training step, for clocks and profilers.

Models mark where a part begins and ends, which without a listener costs one comparison a part.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from torch import Tensor

_NOTHING: AbstractContextManager[None] = nullcontext()


class Listener(Protocol):
    """A clock or a profiler that is told about the parts."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """A context around the part `name`."""

    def ended(self, name: str) -> None:
        """The part `name`, which began where the one before it ended, is over."""


class _Thread(threading.local):
    """The listener of this thread's steps."""

    listener: Listener | None = None


_thread = _Thread()


def span(name: str) -> AbstractContextManager[None]:
    """A context around a part of the step."""
    return _NOTHING if _thread.listener is None else _thread.listener.span(name)


def backward_ends(name: str, tensor: Tensor) -> None:
    """Say that the backward of the part `name` is over once `tensor` has its gradient."""
    listener = _thread.listener
    if listener is not None and tensor.requires_grad:
        tensor.register_hook(lambda gradient: listener.ended(name))


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """A context in which `listener` (None: no one) is told of all parts of this thread's steps."""
    before, _thread.listener = _thread.listener, listener
    try:
        yield
    finally:
        _thread.listener = before
