"""How far a long step is: a bar where there is a terminal, a line a minute in a log or a pipe."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
MINUTE = 60.0


class Progress:
    """Shows how many `units` of `total` are done (None: unknown), and the time left.

    A context manager; `update` counts, `tell` shows a text beside the count. On a terminal and in a
    notebook it is a bar on the error stream, which vanishes at the end; elsewhere a line a minute
    goes to the log. `scale` counts in thousands and millions. Silent unless `show`.
    """

    def __init__(
        self,
        total: int | None,
        what: str = "",
        *,
        units: str = "steps",
        done: int = 0,
        scale: bool = False,
        show: bool = True,
    ) -> None:
        self.total, self.what, self.units, self.done, self.text = total, what, units, done, ""
        self._bar: Any = None
        self._show, self._first = show, done
        self._began = self._said = time.monotonic()
        if show and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            from tqdm import tqdm  # imported late: training needs PyTorch and numpy alone

            self._bar = tqdm(
                desc=what or None,
                total=total,
                initial=done,
                unit=f" {units}",
                unit_scale=scale,
                dynamic_ncols=True,
                smoothing=0.05,
                mininterval=0.5,
                leave=False,
            )

    def update(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._show and (now := time.monotonic()) - self._said >= MINUTE:
            self._said = now
            log.info("%s", self._line(now))

    def tell(self, text: str) -> None:
        """Show `text` beside the count from now on."""
        self.text = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def _line(self, now: float) -> str:
        parts = [f"{self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")]
        parts[0] += f" {self.units}"
        if self.text:
            parts.append(self.text)
        if self.total is not None and self.done > self._first:
            left = (now - self._began) / (self.done - self._first) * (self.total - self.done)
            parts.append(f"{duration(left)} left")
        return (f"{self.what}: " if self.what else "") + ", ".join(parts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def track(items: Iterable[T], total: int, what: str, *, units: str) -> Iterator[T]:
    """The `total` items, counted as each is done with."""
    with Progress(total, what, units=units) as progress:
        for item in items:
            yield item
            progress.update()


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class ConsoleHandler(logging.StreamHandler):
    """A log on a terminal whose lines stand above the bar, never on its line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record while no bar is drawn."""
        tqdm = sys.modules.get("tqdm")
        with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)
