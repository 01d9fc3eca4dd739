"""What a run shows while it trains: the log, a progress bar, TensorBoard's curves."""

import logging
import sys
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("captioner.training.trainer")


def progress_bar(*, total: int = 0, done: int = 0, show: bool = False) -> Any:
    """A tqdm bar over steps, seldom redrawn where no terminal shows it; silent unless `show`."""
    from tqdm import tqdm  # imported late: training's modules need PyTorch and numpy alone

    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        initial=done,
        unit="step",
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=interval,
        disable=not show,
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
