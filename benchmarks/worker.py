"""Programs run to a limit, and Python objects in processes of their own: memory, caches and
allocator settings are not shared; a job that hangs, crashes or loses the GPU costs its process."""

import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from captioner.errors import CaptionerError

ROOT = Path(__file__).parents[1]
KEPT = 20_000  # characters of a program's output that go into a record
GRACE = 15.0  # seconds past the deadline that the last job may still take
# Its processes share nothing with the one that starts them.
CONTEXT = multiprocessing.get_context("spawn")
START_UP = 180.0  # seconds in which a process imports what it needs, beside others


def python_path(root: Path = ROOT) -> str:
    """The PYTHONPATH by which a child process imports both packages of the checkout `root`."""
    paths = [str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(path for path in paths if path)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


@dataclass(frozen=True)
class Finished:
    """How a program ended: `code` is None when it ran into its limit and was ended."""

    code: int | None
    output: str  # standard output and error as they came, the middle of a long one left out
    seconds: float

    @property
    def ending(self) -> str:
        """In words, such as "exit status 1"."""
        limit = f"ended after {self.seconds:.0f} s, its limit"
        return limit if self.code is None else _ending(self.code)


def run_process(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout: float
) -> Finished:
    """Run `command` in `folder`, its environment extended; it and its children end by `timeout`."""
    started, code = time.monotonic(), None
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Finished(127, f"{command[0]}: {error.strerror}", 0.0)
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout)
        finally:  # the whole group: what the program started itself too
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return Finished(code, shortened(text), time.monotonic() - started)


def shortened(text: str, kept: int = KEPT) -> str:
    """`text`, or its beginning and end with a note between them."""
    if len(text) <= kept:
        return text
    left_out = len(text) - kept
    return f"{text[: kept // 4]}\n[... {left_out} characters ...]\n{text[-(kept - kept // 4) :]}"


class Worker:
    """A context: `build(*arguments)`, all importable, in a new process; its methods are called from
    here. CaptionerError with its message when a call fails or the process ended."""

    def __init__(
        self, build: Callable[..., Any], *arguments: Any, threads: int | None = None
    ) -> None:
        self._connection, self._theirs = CONTEXT.Pipe()
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115  (see __exit__)
        given = (self._theirs, self._log.name, threads, build, arguments)
        self._process = CONTEXT.Process(target=_serve, args=given)

    def __enter__(self) -> "Worker":
        self._process.start()
        self._theirs.close()  # so that reading ends when the process does
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()
        self._log.close()

    def call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """The method's result; CaptionerError where it takes longer than `timeout` seconds."""
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(timeout):
                self._process.kill()
            answer, failure = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            printed = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
            code = _ending(self._process.exitcode or 0)
            raise CaptionerError(f"{code}: {printed[-2000:].strip()}") from error
        if failure is not None:
            raise CaptionerError(failure)
        return answer


def _serve(
    connection: Connection,
    log: str,
    threads: int | None,
    build: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Answer each call with its result and None, or with None and what went wrong."""
    with Path(log).open("wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    if threads is not None:
        torch.set_num_threads(threads)
    thing: Any = None
    with suppress(EOFError):
        while True:
            method, given = connection.recv()
            try:
                thing = build(*arguments) if thing is None else thing
                connection.send((getattr(thing, method)(*given), None))
            except Exception:
                connection.send((None, traceback.format_exc(limit=-3)))


@dataclass(frozen=True)
class JobResults:
    """By job: what it returned, or why it failed; and the jobs that were not begun."""

    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def run_jobs(
    do: Callable[..., Any],
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    device: str,
    deadline: float,
    job_seconds: float,
    note: Callable[[JobResults], None] = lambda found: None,
) -> JobResults:
    """`do(device=..., **arguments)` for each of `jobs`, of at most `job_seconds`, none begun after
    `deadline`, of time.time(); with alone=True in a process of its own. `note` gets what there is
    after each."""
    found = JobResults(skipped=list(jobs))
    with ExitStack() as stack:
        worker: Worker | None = None
        for name, given in jobs.items():
            if time.time() >= deadline:
                break
            arguments = {key: value for key, value in given.items() if key != "alone"}
            limit = min(job_seconds, deadline + GRACE - time.time())
            if worker is None or given.get("alone"):
                stack.close()
                worker = stack.enter_context(Worker(_Jobs, do, device))
            try:
                timeout = limit + START_UP
                result, error, works = worker.call("run", arguments, limit, timeout=timeout)
            except CaptionerError as ended:
                result, error, works = None, str(ended), False
            found.skipped.remove(name)
            if error is None:
                found.results[name] = result
            else:
                found.failed[name] = error
            if not works or given.get("alone"):
                worker = None
            note(found)
    return found


class _Jobs:
    """In the process of its own: runs jobs, each with its limit."""

    def __init__(self, do: Callable[..., Any], device: str) -> None:
        self.do, self.device = do, torch.device(device)

    def run(self, arguments: dict[str, Any], limit: float) -> tuple[Any, str | None, bool]:
        """The result, or why there is none, and whether the device still computes."""
        faulthandler.dump_traceback_later(limit, exit=True)
        result, error = None, None
        try:
            result = self.do(device=self.device, **arguments)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        faulthandler.cancel_dump_traceback_later()
        return result, error, device_works(self.device)


def device_works(device: torch.device) -> bool:
    """Whether the device still computes; what a job held of its memory is given back."""
    try:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return float(torch.ones(2, device=device).sum()) == 2
    except RuntimeError:
        return False


def process_age() -> float:
    """Seconds since this process began, as Linux knows it."""
    # Behind the name in parentheses, which may hold anything, field 22 of all counts as the 20th.
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - began / os.sysconf("SC_CLK_TCK")
