"""Checkpoints that are written while training goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from captioner.training.checkpoint import Checkpoint, save_checkpoint, snapshot

WAITING = 2  # checkpoints in memory, the one that is being written among them


class CheckpointWriter:
    """Writes checkpoints one after another in a thread, each from a copy of its tensors.

    What a write raised is raised by the next call, and nothing is written after it: a later
    checkpoint may tell of an earlier one. A block (`with`) ends when all is written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writes: deque[Future[None]] = deque()
        self._error: Exception | None = None

    def write(self, path: Path, checkpoint: Checkpoint) -> None:
        """Copy the checkpoint now, to the CPU, and write it later; waits while WAITING are due.

        Errors of the writes before it as `save_checkpoint`.
        """
        while len(self._writes) >= WAITING:
            self._writes.popleft().result()
        self.check()
        copy = snapshot(checkpoint)
        self._due(lambda: save_checkpoint(path, copy))

    def remove(self, path: Path) -> None:
        """Remove a file, which may be missing, when everything before is written."""
        self._due(lambda: path.unlink(missing_ok=True))

    def check(self) -> None:
        """Raise what a write has raised, if one has."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        """Wait until all is written; errors as `check`."""
        while self._writes:
            self._writes.popleft().result()
        self.check()

    def _due(self, work: Callable[[], None]) -> None:
        self._writes.append(self._thread.submit(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            work()
        except Exception as error:
            self._error = error

    def __enter__(self) -> None:
        """Nothing is due yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        try:
            self.finish()
        except Exception:
            # Who stopped the run was promised a save; any other error is the one to tell.
            if kind is None or issubclass(kind, KeyboardInterrupt):
                raise
