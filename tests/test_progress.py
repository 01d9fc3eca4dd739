"""A bar on a terminal that leaves the log's lines alone; a line a minute anywhere else."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from captioner import progress
from captioner.progress import ConsoleHandler, Progress, duration, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_counts_and_vanishes_and_no_line_of_the_log_is_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    logger = logging.getLogger("test of the bar")
    logger.handlers, logger.propagate = [ConsoleHandler(terminal)], False
    with Progress(3, "captions", units="images") as bar:
        bar.tell("loss 1.5")
        bar._bar.refresh()
        logger.warning("epoch 1")
        bar.update(2)
        bar._bar.refresh()
    assert "captions" in terminal.getvalue() and "2/3" in terminal.getvalue()
    assert "loss 1.5" in terminal.getvalue()
    (line,) = [one for one in terminal.getvalue().split("\n") if "epoch 1" in one]
    assert line.rpartition("\r")[2] == "epoch 1"
    assert not terminal.getvalue().rpartition("\r")[0].rpartition("\r")[2].strip()  # cleared


def test_a_pipe_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # where a bar would be drawn
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, logger="captioner"):
        for _ in track(range(5), 5, "captions", units="batches"):
            clock[0] += 25
        with Progress(2, done=1, show=False) as silent:
            clock[0] += 100
            silent.update()
    assert [one.getMessage() for one in caplog.records] == ["captions: 3 of 5 batches, 50.0 s left"]
    assert capsys.readouterr().err == ""


def test_how_long_is_written() -> None:
    assert [duration(one) for one in (1.25, 150, 7200)] == ["1.2 s", "2 min", "2.0 h"]
