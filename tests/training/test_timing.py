"""Where the time goes: every second counted once, the trace readable, the run untouched."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.profiling import backward_ends, listening, span
from captioner.training.timing import StepClock, Timing

CPU = torch.device("cpu")


class Slow(torch.autograd.Function):
    """The identity; its backward takes 30 ms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        time.sleep(0.03)
        return gradient


def test_a_step_is_taken_apart_forward_and_backward() -> None:
    clock = StepClock(CPU)
    with listening(clock):
        x = torch.ones(2, requires_grad=True)
        with span("first"):
            time.sleep(0.02)
            y = x * 2
        backward_ends("second, backward", y)
        time.sleep(0.01)
        with span("second"):
            z = Slow.apply(y).sum()
        with span("first, backward"):
            z.backward()
    parts = clock.seconds()
    assert list(parts) == ["rest", "first", "second", "second, backward", "first, backward"]
    assert parts["first"] >= 0.02 and parts["rest"] >= 0.01
    assert parts["second, backward"] >= 0.03 > parts["first, backward"]
    whole = clock.marks[-1][1] - clock.marks[0][1]
    assert sum(parts.values()) == pytest.approx(whole, abs=1e-9)


def test_nothing_is_told_without_a_listener() -> None:
    x = torch.ones(1, requires_grad=True)
    with span("part"):
        y = x * 2
    backward_ends("part, backward", y)
    y.backward()
    clock = StepClock(CPU)
    with listening(clock):
        pass
    assert clock.seconds() == {}


class Writer:
    def __init__(self) -> None:
        self.names: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.names[name] = value


def drive(timing: Timing, steps: int) -> None:
    batches = timing.waits(iter(range(steps)))
    for _ in batches:
        with timing.step(), span("work"):
            torch.ones(10).sum()


def test_an_epochs_seconds_go_to_file_and_charts(tmp_path: Path) -> None:
    writer = Writer()
    timing = Timing(tmp_path, device=CPU, every=3, writer=writer)
    drive(timing, 7)
    with timing.during("validation"):
        time.sleep(0.02)
    timing.finish_epoch(1, 7, tokens=700)
    drive(timing, 2)
    timing.finish_epoch(2, 9, tokens=200)
    first, second = json.loads((tmp_path / "timing.json").read_text())["epochs"]
    assert first["seconds"]["validation"] >= 0.02 > second["seconds"]["validation"]
    assert (first["steps_timed"], first["steps_taken_apart"]) == (7, 2)
    assert second["steps_taken_apart"] == 0 and second["milliseconds_of_a_step"] == {}
    parts = first["milliseconds_of_a_step"]
    # No more than the seven steps took, however late the clocks are read.
    assert 0 < parts["work"] < 2 * (parts["work"] + parts["rest"]) < 2e3 * first["seconds"]["steps"]
    training = sum(first["seconds"][k] for k in ("steps", "waiting for data"))
    assert first["tokens_per_second"] == pytest.approx(700 / training, rel=0.05)
    assert "timing of a step/work, ms" in writer.names
    assert "timing/waiting for data, s an epoch" in writer.names


def test_a_resumed_run_continues_with_its_file(tmp_path: Path) -> None:
    before = Timing(tmp_path, device=CPU, every=1)
    for epoch in (1, 2):
        drive(before, 1)
        before.finish_epoch(epoch, epoch, tokens=1)
    again = Timing(tmp_path, device=CPU, every=1)
    again.resume(1)  # epoch 2's end was never saved
    drive(again, 1)
    again.finish_epoch(2, 2, tokens=1)
    epochs = json.loads((tmp_path / "timing.json").read_text())["epochs"]
    assert [one["epoch"] for one in epochs] == [1, 2]


@pytest.mark.parametrize("steps", [20, 8])
def test_a_trace_names_the_parts_and_is_written_once(tmp_path: Path, steps: int) -> None:
    timing = Timing(tmp_path, device=CPU, every=100, profile=True)
    drive(timing, steps)
    timing.finish_epoch(1, steps, tokens=1)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(e.get("name") == "work" and e.get("ph") == "X" for e in events) == min(5, steps - 5)
    (tmp_path / "trace.json").unlink()
    drive(timing, steps)
    timing.finish_epoch(2, 2 * steps, tokens=1)
    assert [p.name for p in tmp_path.iterdir()] == ["timing.json"]
