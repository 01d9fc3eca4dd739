"""How a run ended: a small file in its folder, which sweeps and the leaderboard read."""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from captioner.files import read_json, refuse_special, remove_unfinished, take_lock, write_json
from captioner.restore import Count, Json, restore
from captioner.runs.folder import FolderTaken

OUTCOME = "outcome.json"
_LOCK = "lock"


@dataclass(frozen=True)
class Outcome:
    """A finished run's best score and its epoch, or why a run failed.

    `config` is only kept of a run that failed before it had a folder of its own, `together` of one
    that was trained in one process with others: their folders' names. ValueError where a finished
    run has no score.
    """

    state: Literal["finished", "failed"]
    metric: str | None = None
    best: float | None = None
    epoch: Count | None = None
    replica: Count | None = None  # the one with that score, of several
    reason: str | None = None
    config: dict[str, Json] | None = None
    together: list[str] | None = None

    def __post_init__(self) -> None:
        if self.finished and None in (self.metric, self.best, self.epoch):
            raise ValueError("a finished run has a metric, its best value and an epoch")

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return self.state == "finished"

    def save(self, folder: Path) -> None:
        """Write it into the run's folder."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        write_json(folder / OUTCOME, known)


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome in a run's folder; None while there is none. DataError when it is damaged."""
    path = folder / OUTCOME
    if not path.exists():
        return None
    outcome: Outcome = restore(Outcome, read_json(path, file_names=True), str(path))
    return outcome


def failure(error: BaseException, config: dict[str, Json] | None = None) -> Outcome:
    """The outcome of a run that ended in `error`, its reason in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = type(error).__module__.startswith("captioner")
    return Outcome(
        "failed", reason=text if known else f"{type(error).__name__}: {text}", config=config
    )


@contextlib.contextmanager
def sole_trainer(folder: Path) -> Iterator[None]:
    """Hold a run's folder while this process trains in it; FolderTaken when another one does.

    What an earlier process left half written, killed while it did, is removed. The lock ends with
    the process, however that ends.
    """
    try:
        lock = take_lock(folder / _LOCK, wait=False)
    except BlockingIOError:
        raise FolderTaken(f"another process is training in {folder}") from None
    with lock:
        for one in (folder, *folder.glob("replica_*")):
            remove_unfinished(one, "*.pt", "*.json")
        yield


def is_training(folder: Path) -> bool:
    """Whether another process is training in `folder` now; DataError where its lock is no file."""
    try:
        refuse_special(folder / _LOCK)
        with (folder / _LOCK).open("rb") as handle:
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
