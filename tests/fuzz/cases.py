"""How a case of the fuzzer has to end, and how many cases there are.

A case is an action on hostile input. It ends well if it takes its input or refuses it with one of
the package's own errors in one sentence, within bounds of time and memory. Everything else fails
the test: any other exception, an input that was changed, a file that was left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings

from captioner.errors import CaptionerError

SECONDS = 30  # for one case; what hangs takes for ever
MEGABYTES = 1000  # that one case may take beyond what was taken before
# `make fuzz` has more cases than the tests, and other ones each time.
FACTOR = int(os.environ.get("CAPTIONER_FUZZ", "1"))
FIGURES: dict[str, Counter[str]] = {}  # of each test: how its cases ended


class TooSlow(BaseException):
    """A case that does not end; no handler of errors takes it for one of its own."""


def fuzzed(cases: int) -> Callable[[Any], Any]:
    """Settings of a test by hypothesis with so many cases in the gate: the same ones every time."""
    return settings(
        max_examples=cases * FACTOR,
        derandomize="CAPTIONER_FUZZ" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )


def check_end(name: str, action: Callable[[], object], *, reads: Path | None = None) -> str:
    """Run a case and count its end under `name`: "taken", or the sentence that refuses it.

    `reads` is a folder in which nothing may change.
    """
    before, memory = None if reads is None else snapshot(reads), _megabytes()
    counts = FIGURES.setdefault(name, Counter())
    try:
        with _time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except CaptionerError as error:
        said = str(error)
    else:
        said = "taken"
    assert said.strip() and len(said.splitlines()) == 1, f"not one sentence: {said!r}"
    assert len(said) < 2000, f"{len(said)} characters: {said[:200]!r}..."
    assert reads is None or snapshot(reads) == before, "an input was changed, or a file left"
    assert _megabytes() - memory < MEGABYTES, f"{_megabytes() - memory} MB taken"
    counts["taken" if said == "taken" else "clear"] += 1
    return said


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest of its content; what is no file with its mode."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else oct(path.lstat().st_mode)
        for path in sorted(folder.rglob("*"))
    }


def _megabytes() -> int:
    """The most memory that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"a case takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
