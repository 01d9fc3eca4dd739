"""Items that a thread computes while those before are used."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of an iterable, computed by a thread from now on, at most `most` ahead.

    It pays where computing them lets other threads run (zlib, numpy's random numbers). An error of
    the iterable is raised in place of the item. `close` ends the thread before the last item.
    """

    def __init__(self, items: Iterable[T], *, most: int) -> None:
        self._computed: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(most)
        self._closed = threading.Event()
        threading.Thread(target=self._compute, args=(items,), daemon=True).start()

    def _compute(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._computed.put(("item", item))
                if self._closed.is_set():
                    return
            self._computed.put(("end", None))
        except BaseException as error:
            self._computed.put(("error", error))

    def __iter__(self) -> Iterator[T]:
        """The items, once."""
        while (computed := self._computed.get())[0] == "item":
            yield computed[1]  # type: ignore[misc]
        if computed[0] == "error":
            raise computed[1]  # type: ignore[misc]

    def close(self) -> None:
        """Compute no more."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._computed.get_nowait()
