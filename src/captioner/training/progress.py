"""The progress bar of a run, or nothing in its place."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any


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

    return tqdm(
        total=total, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )  # fmt: skip
