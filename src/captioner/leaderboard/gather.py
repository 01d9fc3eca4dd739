"""Runs as their folders describe them: small files only, no checkpoint is opened.

A folder in any state gives a run or a note that says what is wrong with it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from captioner.errors import DataError
from captioner.files import read_json
from captioner.restore import Json, Size, restore
from captioner.runs.folder import CONFIG, flat, read_config
from captioner.runs.outcome import OUTCOME, is_training, read_outcome
from captioner.runs.upgrade import upgrade

HISTORY = "history.json"
# Metrics of which a smaller value is better: those of language models.
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_character", "bits_per_byte")


class _Trainer(TypedDict):
    """What is read here of a run's configuration under "trainer"; all of it is shown."""

    epochs: Size
    best_metric: str


class _Scored(TypedDict):
    split: str
    checkpoint: str


class _Card(_Scored, total=False):
    generation: dict[str, Json]


class _Scores(TypedDict):
    """What is read here of an evaluation's scores."""

    protocol: _Card
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """95 % bounds of a score, from an evaluation of the run's best checkpoint."""

    low: float
    high: float
    source: str  # the evaluation's folder


@dataclass(frozen=True)
class Run:
    """One run: its state, its best score and epoch so far, and its settings by dotted key.

    `state` is finished, running, stopped or failed; `seconds` counts training, validation aside,
    and what the runs took that were trained `together` with it, named by their folders.
    """

    folder: Path
    state: str
    metric: str
    settings: Mapping[str, Any]
    history: Sequence[Mapping[str, float]] = ()
    reason: str | None = None
    interval: Interval | None = None
    together: Sequence[str] = ()

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller score wins."""
        return self.metric in LOWER_IS_BETTER

    @property
    def best(self) -> Mapping[str, float] | None:
        """The figures of the best epoch; None before the first has ended."""
        sign = -1 if self.lower_is_better else 1
        return max(self.history, key=lambda one: sign * one[self.metric], default=None)

    @property
    def score(self) -> float | None:
        """The best epoch's value of `metric`."""
        return None if self.best is None else self.best[self.metric]

    @property
    def seconds(self) -> float:
        """Training time of all epochs so far."""
        return sum(one.get("seconds", 0.0) for one in self.history)

    @property
    def checkpoint(self) -> Path | None:
        """The best epoch's weights, if they are there."""
        path = self.folder / "best.pt"
        return path if self.best is not None and path.exists() else None

    @property
    def data(self) -> str:
        """What it was trained on: scores on different data cannot be compared."""
        kind = str(self.settings.get("data.kind", "unknown data"))
        if kind != "text":
            return kind
        source = self.settings.get("data.source")
        name = source if source not in (None, "path") else self.settings.get("data.path")
        return f"{name}, by {self.settings.get('data.unit')}"


@dataclass(frozen=True)
class Gathered:
    """The runs that were found, and a line about every folder that could not be read as one."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(folders: Sequence[Path | str]) -> Gathered:
    """All runs in and below `folders`, by name; DataError when one of these is no folder."""
    gathered = Gathered()
    for top in map(Path, folders):
        if not top.is_dir():
            raise DataError(f"there is no folder {top}")
        for folder in _run_folders(top):
            try:
                gathered.runs.append(_read(folder))
            except DataError as error:
                gathered.notes.append(f"{folder} is left out: {error}")
    return gathered


def _run_folders(top: Path) -> Iterator[Path]:
    """Folders with a run's files; none within a run, whose own folders hold evaluations."""
    for parent, below, files in os.walk(top):
        below.sort()
        if {CONFIG, HISTORY, OUTCOME} & set(files):
            below.clear()
            yield Path(parent)
        else:
            below[:] = [name for name in below if not name.startswith(".")]


def _read(folder: Path) -> Run:
    outcome = read_outcome(folder)
    if (folder / CONFIG).exists():
        config = read_config(folder / CONFIG)
        if "trainer" not in config:
            raise DataError(f"{CONFIG} is not that of a training run")
        restore(_Trainer, config["trainer"], f"{CONFIG}: trainer")
    elif outcome is not None and not outcome.finished:
        config = outcome.config or {}
    else:
        raise DataError(f"it has no {CONFIG}")
    settings = flat(upgrade(config))
    metric = str(settings.get("trainer.best_metric", "unknown"))
    history = _history(folder, metric)
    state: str = outcome.state if outcome else "stopped"
    if outcome is None and history and len(history) >= settings.get("trainer.epochs", 0):
        state = "finished"  # by a version that wrote no outcome
    if is_training(folder):
        state = "running"
    reason = outcome.reason if outcome and state == "failed" else None
    interval = _interval(folder, metric, settings)
    together = (outcome.together if outcome else None) or ()
    return Run(folder, state, metric, settings, history, reason, interval, together)


def _history(folder: Path, metric: str) -> list[dict[str, float]]:
    path = folder / HISTORY
    if not path.exists():
        return []
    history = restore(list[dict[str, float | None]], read_json(path), HISTORY)
    known = [{key: value for key, value in one.items() if value is not None} for one in history]
    for number, epoch in enumerate(known):
        if absent := {"epoch", metric} - epoch.keys():
            raise DataError(f"{HISTORY}: [{number}] has no number {', '.join(sorted(absent))}")
    return known


def _interval(folder: Path, metric: str, settings: Mapping[str, Any]) -> Interval | None:
    """Of an evaluation of best.pt on dev; one with the run's own method of generation first."""
    found = []
    for path in sorted(folder.glob("*/scores.json")):
        try:
            stored = restore(dict[str, Json], read_json(path, file_names=True), str(path))
            scores = restore(_Scores, upgrade(stored), str(path))
            low, high = scores["intervals"][metric]
        except (DataError, KeyError):
            continue  # scores of another program, or without intervals
        card, interval = scores["protocol"], Interval(low, high, path.parent.name)
        dev = card["split"] == "dev" and "best.pt" in card["checkpoint"]
        same = flat({"generation": card.get("generation", {})})
        if dev:
            found.append((all(settings.get(k) == v for k, v in same.items()), interval))
    return max(found, key=lambda one: one[0])[1] if found else None
