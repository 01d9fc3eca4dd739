"""Programs, run to their end or to a limit, with what they printed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = 20_000  # characters of a program's output that go into a record


def python_path(root: Path = ROOT) -> str:
    """The PYTHONPATH by which a child process imports both packages of the checkout `root`."""
    paths = [str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(path for path in paths if path)


def ending(code: int) -> str:
    """An exit status in words."""
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
        if self.code is None:
            return f"ended after {self.seconds:.0f} s, its limit"
        return ending(self.code)


def run_process(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout: float
) -> Finished:
    """Run `command` in `folder`, its environment extended; it and its children end by `timeout`."""
    started = time.monotonic()
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
        code = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout)
        finally:  # the whole group: what the program started itself too
            with contextlib.suppress(ProcessLookupError, PermissionError):
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
