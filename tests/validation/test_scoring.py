"""Scores computed beside the training: those that are computed here, and no silent end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from captioner.data.scenes.captions import Scene
from captioner.errors import CaptionerError
from captioner.evaluation import score
from captioner.evaluation.attributes import attribute_percentages
from captioner.validation import scoring
from captioner.validation.scores import VALIDATED, CaptionScorer
from captioner.validation.scoring import Scoring, ScoringProcess

REFERENCES = {"a": ("A dog runs.", "the dog"), "b": ("two cats",), "c": ("a horse, a cart", "cart")}


SCENE = Scene("two", "small", "red", "ring", "left", "large", "blue", "square")
SCORER = CaptionScorer(REFERENCES, partial(attribute_percentages, dict.fromkeys(REFERENCES, SCENE)))


def measured(*captions: str) -> dict[str, Any]:
    named = dict(zip(REFERENCES, captions, strict=True))
    return {"loss": 1.5, "captions": named, "attention": {"attention_on_object": 3.0}}


def test_the_figures_are_those_of_score_again_and_again() -> None:
    scorer = CaptionScorer(REFERENCES)
    for captions in (("a dog", "two cats run", "a cart"), ("x", "y z", "a dog runs")):
        one = measured(*captions)
        expected = score(REFERENCES, one["captions"], samples=0)
        figures = scorer(one)
        assert {name: figures[name] for name in VALIDATED} == {k: expected[k] for k in VALIDATED}
        assert figures["loss"] == 1.5 and figures["attention_on_object"] == 3.0
        assert figures["different_captions"] == 1.0


@pytest.fixture(scope="module")
def process() -> Iterator[ScoringProcess]:
    yield ScoringProcess(SCORER)


def test_another_process_gives_the_same_bits_and_needs_no_torch(
    process: ScoringProcess,
) -> None:
    asked = [measured("a dog", "two red rings", f"a cart {k}") for k in range(4)]
    futures = [process.submit(one) for one in asked]
    here = [SCORER(one) for one in asked]
    assert [future.result() for future in futures] == here
    assert [list(future.result()) for future in futures] == [list(one) for one in here]
    code = "import sys, captioner.validation.scoring, captioner.validation.scores as s; "
    code += "s.CaptionScorer({'a': ('a b',)}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_failure_is_told_and_the_next_is_answered(process: ScoringProcess) -> None:
    with pytest.raises(CaptionerError, match="scores captions failed: KeyError: 'loss'"):
        process.submit({}).result()
    assert process.submit(measured("a", "b", "c")).result()["loss"] == 1.5


def test_a_process_that_was_killed_is_named(process: ScoringProcess) -> None:
    os.kill(process._process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(CaptionerError, match="was killed by signal 9"):
            process.submit(measured("a", "b", "c")).result()


def test_it_ends_with_whoever_started_it() -> None:
    """However that ends: here it is killed. What a scorer prints is no answer."""
    code = "import os, signal, sys; from captioner.validation.scoring import ScoringProcess\n"
    code += "process = ScoringProcess(print)\nassert process.submit({}).result() is None\n"
    code += "print(process._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    pid, until = int(killed.stdout), time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("it is still there")


def test_several_at_the_same_time_are_scored_by_as_many_processes(tmp_path: Path) -> None:
    """Each waits for the other, which one process could not answer."""
    command = "touch {0}; for k in $(seq 2000); do [ -e {1} ] && exit 0; sleep 0.01; done; exit 1"
    one = Scoring(subprocess.getstatusoutput, "beside", processes=2)  # type: ignore[arg-type]
    asked = [command.format(tmp_path / a, tmp_path / b) for a, b in ("ab", "ba")]
    futures = [one(command, at_once=True) for command in asked]  # type: ignore[arg-type]
    assert [future.result() for future in futures] == [(0, "")] * 2
    assert one("exit 3", at_once=True).result() == (3, "")  # type: ignore[arg-type]
    assert len(one._processes) == 2


def test_it_is_asked_where_it_saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, scorer: Any) -> None:
            started.append(scorer)

        waiting = 0
        submit = staticmethod(lambda measured: "beside")

    started: list[Any] = []
    monkeypatch.setattr(scoring, "ScoringProcess", Process)
    quick = Scoring(lambda measured: {"x": 1.0})
    assert [quick({}, at_once=False).result() for _ in range(2)] == [{"x": 1.0}] * 2
    monkeypatch.setattr(scoring, "LONG", -1.0)
    for place, waits, answers in (
        ("auto", (False, False, True, False), ("here", "beside", "here", "beside")),
        ("inline", (False, False), ("here", "here")),
        ("beside", (True, False), ("beside", "beside")),
    ):
        one = Scoring(lambda measured: "here", place)  # type: ignore[arg-type, return-value]
        found: list[Any] = [one({}, at_once=wait) for wait in waits]
        got = tuple(x if x == "beside" else x.result() for x in found)
        assert got == answers, place
    assert len(started) == 2  # one each
