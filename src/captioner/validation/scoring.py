"""Where the scores of a validation are computed: here, or beside the training in another process.

The other process imports no torch and holds no model. It reads pickled objects from its standard
input, the scorer first, and ends when that is closed, however its parent ends.
"""

import contextlib
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from captioner.errors import CaptionerError

log = logging.getLogger(__name__)
Scorer = Callable[[dict[str, Any]], dict[str, float]]
LONG = 0.2  # processor seconds of scoring; another process takes two or three times that to start
# Modules are looked up as here, whatever the environment and the working folder hold.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from captioner.validation.scoring import serve; serve()"
)


class Scoring:
    """Has `scorer` make figures of what validations measured.

    `place` is "beside", another process; "inline", this one; or "auto": beside, as soon as scoring
    once has taken longer than LONG, and unless it is waited for at once. Several validations at
    the same time are scored by as many processes, at most `processes`, also where they are waited
    for: here threads would score one after another.
    """

    def __init__(self, scorer: Scorer, place: str = "auto", *, processes: int = 1) -> None:
        self.scorer, self.place, self.most = scorer, place, processes
        self._long = False
        self._asking = threading.Lock()
        self._processes: list[ScoringProcess] = []

    def __call__(self, measured: dict[str, Any], *, at_once: bool) -> Future[dict[str, float]]:
        """The figures. Here what the scorer raises is raised; the process's future raises
        CaptionerError where it died or failed."""
        if self.place == "beside" or (self._long and (not at_once or self.most > 1)):
            return self._beside(measured)
        figures: Future[dict[str, float]] = Future()
        started = time.thread_time()
        figures.set_result(self.scorer(measured))
        self._long |= self.place == "auto" and time.thread_time() - started > LONG
        return figures

    def _beside(self, measured: dict[str, Any]) -> Future[dict[str, float]]:
        with self._asking:  # replicas validate in threads
            if not self._processes:
                log.info("from here on captions are scored in another process, beside training")
            busy = all(one.waiting for one in self._processes)
            if busy and len(self._processes) < self.most:
                self._processes.append(ScoringProcess(self.scorer))
            return min(self._processes, key=lambda one: one.waiting).submit(measured)


class ScoringProcess:
    """A Python process that scores at low priority, one request after another."""

    def __init__(self, scorer: Scorer) -> None:
        # A session of its own: Ctrl-C is for the training, which may still want the scores.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._asking = threading.Lock()
        weakref.finalize(self, _end, self._process)
        self._scorer: Scorer | None = scorer
        self._due: list[Future[dict[str, float]]] = []

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        self._due = [one for one in self._due if not one.done()]
        return len(self._due)

    def submit(self, measured: dict[str, Any]) -> Future[dict[str, float]]:
        """The figures, when they are there; CaptionerError where the process died or failed."""
        figures: Future[dict[str, float]] = Future()
        self._due.append(figures)

        def ask() -> None:
            try:
                with self._asking:
                    figures.set_result(self._ask(measured))
            except Exception as error:
                figures.set_exception(error)

        threading.Thread(target=ask, daemon=True, name="scores").start()
        return figures

    def _ask(self, measured: dict[str, Any]) -> dict[str, float]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            if self._scorer is not None:
                pickle.dump(self._scorer, requests)
                self._scorer = None
            pickle.dump(measured, requests)
            requests.flush()
            answer = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise CaptionerError(f"the process that scores captions {self._ending()}") from error
        if isinstance(answer, str):
            raise CaptionerError(f"the process that scores captions failed: {answer}")
        return answer

    def _ending(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"was killed by signal {-status}, perhaps for lack of memory"
        return f"ended with exit status {status}; what it said stands above"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # one that still held a request
            stream and stream.close()


def serve() -> None:
    """The other process: answer each request by figures, or by the error as text."""
    os.nice(10)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        scorer: Scorer = pickle.load(requests)
        while True:
            pickle.dump(_answer(scorer, pickle.load(requests)), answers)
            answers.flush()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the training has ended
        return


def _answer(scorer: Scorer, measured: dict[str, Any]) -> dict[str, float] | str:
    try:
        return scorer(measured)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
