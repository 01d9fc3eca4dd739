"""What a run shows while it trains: the log, TensorBoard's curves, and what it will take."""

import logging
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from captioner.progress import duration

log = logging.getLogger("captioner.training.trainer")
# Digits behind the point of the figures that are no percentages.
_DIGITS = {"loss": 4, "train_loss": 4, "bits_per_character": 4, "bits_per_byte": 4}


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Where a run reports to: `writer` is a TensorBoard SummaryWriter or None, `name` stands before
    what is logged."""

    writer: Any = None
    show_progress: bool = True
    name: str = ""

    def say(self, message: str, *values: Any) -> None:
        """Log a message."""
        if self.name:
            message, values = f"%s: {message}", (self.name, *values)
        log.info(message, *values)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write figures to TensorBoard."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def epoch(
        self, figures: Mapping[str, float], better: bool, *, metric: str, epochs: int
    ) -> None:
        """Log an epoch's row, one of `epochs`, aligned with the others: losses, the `metric` that
        decides, time. All figures go to TensorBoard."""
        cells = [f"epoch {figures['epoch']:>{len(str(epochs))}.0f}/{epochs}"]
        for name in dict.fromkeys(("train_loss", "perplexity", metric)):
            if name in figures:
                cells.append(f"{name.replace('_', ' ')} {figure(name, figures[name]):>7}")
        cells.append(f"{duration(figures['seconds']):>7}")
        self.say("   ".join([*cells, *(["best so far"] if better else [])]))
        shown = {k: v for k, v in figures.items() if k not in ("epoch", "step")}
        self.scalars({f"epoch/{k}": v for k, v in shown.items()}, int(figures["step"]))
        if self.writer is not None:
            self.writer.flush()


def figure(name: str, value: float) -> str:
    """A figure for the terminal: percentages and perplexity with two digits, losses with four."""
    return f"{value:.{_DIGITS.get(name, 2)}f}"


class Forecast:
    """Says once what a run will take: time, by STEPS steps in succession, and memory."""

    STEPS = 10

    def __init__(self, reporting: Reporting, *, device: torch.device, epoch: int) -> None:
        self.reporting, self.device, self.steps_per_epoch = reporting, device, epoch
        self._taken, self._began, self._said = 0, 0.0, False

    def begin(self) -> None:
        """An epoch begins: what lies between two is not counted."""
        self._taken = 0

    def step(self, left: int) -> None:
        """A step was taken; `left` are to come."""
        self._taken += 1
        if self._said or self._taken not in (1, 1 + self.STEPS):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        if self._taken == 1:  # which also warms up
            self._began = now
            return
        self._said, seconds = True, (now - self._began) / self.STEPS
        self.reporting.say(
            "by the first %d steps: %s an epoch of %s steps, %s for all that follow, validation "
            "apart; memory so far %s",
            *(self.STEPS, duration(seconds * self.steps_per_epoch), f"{self.steps_per_epoch:,}"),
            *(duration(seconds * left), memory(self.device)),
        )


def memory(device: torch.device) -> str:
    """The most memory that this process has had: the host's, and a GPU's where one computes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = size * (1 if sys.platform == "darwin" else 1024)
    text = f"{host / 1e6:,.0f} MB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e6:,.0f} MB"
    return text
