"""Named parts of a training step, for whoever wants to know where its time goes.

Models say where a part begins and ends; a clock or a profiler listens while it wants to. Nobody
listening costs one comparison a part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from torch import Tensor

_NOTHING: AbstractContextManager[None] = nullcontext()


class Listener(Protocol):
    """What is told about the parts."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """A context around the part `name`."""

    def ended(self, name: str) -> None:
        """The part `name`, which began where the one before it ended, is over."""


class _Ear(threading.local):
    """Who listens to this thread's steps."""

    listener: Listener | None = None


_ear = _Ear()


def span(name: str) -> AbstractContextManager[None]:
    """A context around a part of the step."""
    return _NOTHING if _ear.listener is None else _ear.listener.span(name)


def backward_ends(name: str, tensor: Tensor) -> None:
    """Say that the backward of the part `name` is over once `tensor` has its gradient."""
    listener = _ear.listener
    if listener is not None and tensor.requires_grad:
        tensor.register_hook(lambda gradient: listener.ended(name))


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell `listener`, or nobody, of all parts of this thread's steps while the context is open."""
    before, _ear.listener = _ear.listener, listener
    try:
        yield
    finally:
        _ear.listener = before
