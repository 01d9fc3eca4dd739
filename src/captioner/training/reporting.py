"""What a run shows while it trains: the log, a progress bar, TensorBoard's curves."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("captioner.training.trainer")


class SilentBar(AbstractContextManager["SilentBar"]):
    """Takes what a tqdm bar takes and shows nothing."""

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, steps: int = 1) -> None:
        """Count steps."""

    def set_postfix_str(self, text: str) -> None:
        """Show a text behind the bar."""


def progress_bar(*, total: int, done: int, show: bool) -> Any:
    """A tqdm bar over steps, seldom redrawn where no terminal shows it; silent unless `show`."""
    if not show:
        return SilentBar()
    from tqdm import tqdm  # a machine that only computes needs none

    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        initial=done,
        unit="step",
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=interval,
    )


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Where a run reports to: `writer` is a TensorBoard SummaryWriter or None, `name` stands before
    what is logged."""

    writer: Any = None
    show_progress: bool = True
    name: str = ""

    def say(self, message: str, *values: Any) -> None:
        """Log a message."""
        log.info(f"{self.name}: {message}" if self.name else message, *values)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write figures to TensorBoard."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def epoch(self, figures: dict[str, float], better: bool) -> None:
        """Log an epoch's figures and write them to TensorBoard."""
        shown = {k: v for k, v in figures.items() if k not in ("epoch", "step")}
        text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.say("epoch %d: %s%s", figures["epoch"], text, " (best so far)" if better else "")
        self.scalars({f"epoch/{k}": v for k, v in shown.items()}, int(figures["step"]))
        if self.writer is not None:
            self.writer.flush()
