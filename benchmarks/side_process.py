"""A side of a benchmark in a process of its own: memory, caches and the allocator's settings are
then not the other's."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

import torch

from benchmarks.train_memory import own_bytes, peak_bytes
from captioner.errors import CaptionerError


class Side(Protocol):
    """Something that takes steps, collecting the loss of each."""

    losses: list[float]

    def steps(self, count: int) -> None:
        """Take `count` steps."""


class SideProcess:
    """A context: `build(*arguments)` called in a new process, its steps timed there.

    `build` and its arguments must be importable from there (a function of a module, plain values).
    Raises CaptionerError with the other process's own words when it fails.
    """

    def __init__(
        self, build: Callable[..., Side], *arguments: Any, threads: int, device: torch.device
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, build, arguments, threads, device), daemon=True
        )

    def __enter__(self) -> SideProcess:
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()

    def seconds(self, steps: int) -> float:
        """Take `steps` steps; the seconds they took."""
        return float(self._ask(("steps", steps)))

    def losses(self) -> list[float]:
        """The loss of each step so far."""
        found: list[float] = self._ask(("losses",))
        return found

    def peak_bytes(self) -> int:
        """The process's largest resident memory so far."""
        return int(self._ask(("peak",)))

    def own_bytes(self) -> int:
        """What the process holds now, without files that are only mapped."""
        return int(self._ask(("own",)))

    def _ask(self, question: tuple[Any, ...]) -> Any:
        try:
            self._connection.send(question)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise CaptionerError("a side of the benchmark ended without a word") from error
        if isinstance(answer, Failure):
            raise CaptionerError(f"a side of the benchmark failed: {answer.words}")
        return answer


class Failure:
    """What went wrong in the other process."""

    def __init__(self, words: str) -> None:
        self.words = words


def _serve(
    connection: Connection,
    build: Callable[..., Side],
    arguments: tuple[Any, ...],
    threads: int,
    device: torch.device,
) -> None:
    torch.set_num_threads(threads)
    try:
        side = build(*arguments)
        while True:
            question = connection.recv()
            if question[0] == "steps":
                connection.send(_timed(side, question[1], device))
            else:
                answers = {"losses": lambda: side.losses, "peak": peak_bytes, "own": own_bytes}
                connection.send(answers[question[0]]())
    except EOFError:
        return
    except Exception:
        connection.send(Failure(traceback.format_exc(limit=-3)))


def _timed(side: Side, steps: int, device: torch.device) -> float:
    started = time.perf_counter()
    side.steps(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
