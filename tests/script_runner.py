"""The project's scripts and others as processes that start at once: script_server.py forks them."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("script_server.py")


class Process:
    """A script's process, which leads a process group, as subprocess.Popen would have it."""

    def __init__(self, pid: int, status: Path, output: tuple[Path, Path]) -> None:
        self.pid, self.returncode = pid, None  # type: int, int | None
        self._status, self._output = status, output

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None and self._status.exists():
            self.returncode = int(self._status.read_text())
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit status, waited for."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self._status), timeout)
            time.sleep(0.005)
        return status

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return as soon as something has happened, or it has ended."""
        end = time.monotonic() + 120
        while not happened() and self.poll() is None:
            assert time.monotonic() < end, "waited two minutes in vain"
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL for it and the processes that it has started."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait(timeout=60)

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._output[0].read_text()

    @property
    def stderr(self) -> str:
        """The same of its errors; where both go to one file, all."""
        return self._output[1].read_text()


class Scripts:
    """The scripts of a checkout, in any folder, one after another or beside each other.

    pytest's processes share a server, which the first that needs it begins.
    """

    def __init__(self, tree: Path = REPOSITORY) -> None:
        self.tree, self._count = tree, 0
        self._places = tempfile.TemporaryDirectory(prefix="scripts")
        session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        self._serves = os.getppid() if session else os.getpid()
        self._address = str(
            Path(tempfile.gettempdir(), f"scripts-{session}")
            if session
            else Path(self._places.name, "server")
        )
        self._begun = False

    def start(
        self,
        folder: Path,
        script: str | Path,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        together: bool = False,
    ) -> Process:
        """Begin scripts/<script>.py, or a file, in `folder`; `together`: stderr goes to stdout."""
        self._count += 1
        place = Path(self._places.name) / str(self._count)
        output = place.with_suffix(".out"), place.with_suffix(".out" if together else ".err")
        for file in output:
            file.touch()
        call = {
            "script": str(
                script if isinstance(script, Path) else self.tree / "scripts" / f"{script}.py"
            ),
            "arguments": [*arguments],
            "environment": {**(environment or {})},
            "folder": str(folder),
            "output": [str(file) for file in output],
            "status": str(place),
        }
        with self._connected() as server:
            server.sendall(json.dumps(call).encode() + b"\n")
            with server.makefile("r") as answer:
                return Process(int(answer.readline()), place, output)

    def run(
        self,
        folder: Path,
        script: str | Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        process = self.start(folder, script, arguments, environment=environment)
        status = process.wait(timeout)
        return subprocess.CompletedProcess(arguments, status, process.stdout, process.stderr)

    def _connected(self) -> socket.socket:
        if not self._begun:
            self._begin()
        end = time.monotonic() + 5
        while True:
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._address)
            except ConnectionRefusedError:  # bound by another process, which does not listen yet
                server.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return server

    def _begin(self) -> None:
        """Begin the server, unless another process has."""
        self._begun = True
        with socket.socket(socket.AF_UNIX) as listening:
            try:
                listening.bind(self._address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return
            listening.listen(64)
            subprocess.Popen(
                [sys.executable, str(SERVER), str(self._serves)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=listening,
                stdout=subprocess.DEVNULL,
            )

    def close(self) -> None:
        """Forget the outputs; the server ends with the process that it serves."""
        self._places.cleanup()
