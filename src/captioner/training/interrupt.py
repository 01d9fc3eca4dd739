"""Ctrl-C and SIGTERM as a request to stop, which the trainer reads between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """A context in which the first signal sets `requested`; a second one stops at once.

    A step is never cut in half by the first signal: an optimiser's update that is half done cannot
    be saved. While `saved` is true (nothing would be lost) even the first signal stops at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self.saved = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.saved:
            raise KeyboardInterrupt
        self.requested = True
