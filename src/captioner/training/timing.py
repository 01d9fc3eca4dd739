"""A run's times: timing.json, TensorBoard's charts, and a profiler's trace on request."""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch

from captioner.files import read_json, write_json
from captioner.profiling import listening
from captioner.restore import restore

log = logging.getLogger(__name__)
T = TypeVar("T")
Mark = tuple[str, float, Any]  # a part that ended, when by the host, and the device's event
REST = "rest"


class StepClock:
    """Times the parts of a step, each from the end of the one before it to its own end.

    On CUDA the times are the device's, from events that are read long after the step.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: list[Mark] = []
        self.ended("")

    def ended(self, name: str) -> None:
        """The part `name` is over."""
        event = None
        if self.on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self.marks.append((name, time.perf_counter(), event))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A part with a beginning of its own; what came before it belongs to the rest."""
        self.ended(REST)
        yield
        self.ended(name)

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and of the host for the whole step where a GPU computes."""
        parts: defaultdict[str, float] = defaultdict(float)
        for (_, before, first), (name, now, last) in zip(self.marks, self.marks[1:], strict=False):
            taken = now - before
            if self.on_cuda:
                last.synchronize()
                taken = first.elapsed_time(last) / 1e3
            parts[name] += taken
        if self.on_cuda:
            parts["host, all launches"] = self.marks[-1][1] - self.marks[0][1]
        return parts


class Phases:
    """Times the phases of a run's start, from the process's own beginning where the system tells it
    and this is its first run."""

    _first = True

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        age, Phases._first = process_age() if Phases._first else None, False
        if age is not None:
            self.seconds["command line and imports"] = age
        self._began = time.perf_counter() - (age or 0.0)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A phase."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def ended(self, name: str) -> None:
        """All up to now has taken this long."""
        self.seconds[name] = time.perf_counter() - self._began


def process_age() -> float | None:
    """Seconds since this process began; None where the system has no /proc."""
    try:
        # Field 22, of which the second, the name, may hold spaces; ticks since the machine started.
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None


class Ranges:
    """Names the parts in a profiler's trace, and for Nsight where a GPU computes."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A named range."""
        for_nsight = torch.cuda.nvtx.range(name) if self.on_cuda else nullcontext()
        with for_nsight, torch.profiler.record_function(name):
            yield

    def ended(self, name: str) -> None:
        """The profiler sees the operations of the backward themselves."""


class _Epoch(TypedDict):
    epoch: int


class _Stored(TypedDict):
    """What is read of timing.json; an epoch's other figures are kept as they are."""

    epochs: list[_Epoch]


class Timing:
    """Seconds of an epoch by activity, and of a step by its parts.

    Waiting for data, steps, saving and validation are always timed; the parts of every `every`th
    step; and until the first step the phases of the `start`, where there are some. `profile` also
    writes trace.json, the steps FIRST to LAST of the first epoch that has them, for Perfetto
    (ui.perfetto.dev) or chrome://tracing.
    """

    FIRST, LAST = 6, 10

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        every: int,
        profile: bool = False,
        writer: Any = None,
    ) -> None:
        self.folder, self.device, self.every, self.writer = folder, device, every, writer
        self.epochs: list[dict[str, Any]] = []
        self.start: Phases | None = None
        self._started = False
        self._wants_trace = profile
        self.start_epoch()

    def start_epoch(self) -> None:
        """Count from zero."""
        self.seconds = dict.fromkeys(("waiting for data", "steps", "saving", "validation"), 0.0)
        self.clocks: list[StepClock] = []
        self.taken = 0
        self._profiler: Any = None

    def resume(self, epoch: int) -> None:
        """Continue the file of a run that has finished `epoch` epochs."""
        path = self.folder / "timing.json"
        if path.exists():
            stored = restore(_Stored, read_json(path), str(path))
            self.epochs = [one for one in stored["epochs"] if one["epoch"] <= epoch]

    def waits(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, the time until each is there counted as waiting."""
        while True:
            with self.during("waiting for data"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count the time inside as `what`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step: its parts timed, traced or only counted."""
        self.taken += 1
        with self.during("steps"), self._listening():
            yield
        if self.start is not None and not self._started:
            self._started = True
            self.start.ended("until the first step")
            self._write()
        if self._profiler is not None and self.taken == self.LAST:
            self._write_trace()

    def _listening(self) -> AbstractContextManager[None]:
        if self._wants_trace and self.taken == self.FIRST:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs as errors
            self._profiler = torch.profiler.profile()
            self._profiler.start()
            self._wants_trace = False
        if self._profiler is not None:
            return listening(Ranges(self.device))
        return self._timing_parts() if self.taken % self.every == 0 else nullcontext()

    @contextmanager
    def _timing_parts(self) -> Iterator[None]:
        clock = StepClock(self.device)
        with listening(clock):
            yield
        clock.ended(REST)
        self.clocks.append(clock)

    def _write_trace(self) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = self.folder / "trace.json"
        unfinished = path.with_suffix(".unfinished.json")
        profiler.export_chrome_trace(str(unfinished))
        unfinished.replace(path)
        log.info("trace of %d steps: %s", self.LAST - self.FIRST + 1, path)

    def finish_epoch(self, epoch: int, step: int, tokens: int) -> None:
        """Write the epoch's figures to timing.json and to TensorBoard."""
        if self._profiler is not None:  # a short epoch
            self._write_trace()
        training = self.seconds["waiting for data"] + self.seconds["steps"]
        parts = self._parts()
        self.epochs.append(
            {
                "epoch": epoch,
                "step": step,
                "steps_timed": self.taken,
                "seconds": {what: round(value, 6) for what, value in self.seconds.items()},
                "tokens_per_second": round(tokens / training, 1) if training else None,
                "steps_taken_apart": len(self.clocks),
                "milliseconds_of_a_step": {k: round(1e3 * v, 4) for k, v in parts.items()},
            }
        )
        self._write()
        if self.writer is not None:
            for what, value in self.seconds.items():
                self.writer.add_scalar(f"timing/{what}, s an epoch", value, step)
            for part, value in parts.items():
                self.writer.add_scalar(f"timing of a step/{part}, ms", 1e3 * value, step)
        self.start_epoch()

    def _write(self) -> None:
        content: dict[str, Any] = {"device": str(self.device)}
        if self.start is not None:
            content["seconds_of_the_start"] = {
                phase: round(value, 3) for phase, value in self.start.seconds.items()
            }
        write_json(self.folder / "timing.json", {**content, "epochs": self.epochs})

    def _parts(self) -> dict[str, float]:
        """Mean seconds of each part over the steps whose parts were timed."""
        totals: defaultdict[str, float] = defaultdict(float)
        for clock in self.clocks:
            for part, seconds in clock.seconds().items():
                totals[part] += seconds
        return {part: total / len(self.clocks) for part, total in totals.items()}
