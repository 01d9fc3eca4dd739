"""An Optuna study that can be resumed: trials are stored, and unfinished ones run again.

A trial is drawn from its number and the stored trials, so that a study that was killed continues
with the trials that it would have had.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from captioner.errors import ConfigError
from captioner.files import take_lock
from captioner.runs.folder import FolderTaken
from captioner.runs.outcome import Outcome
from captioner.runs.upgrade import first_name


def import_optuna() -> Any:
    """The library; ConfigError that names the extra when it is missing or too old."""
    needed = "hydra/sweeper=optuna needs Optuna 4 or newer: pip install 'captioner[sweeps]'"
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(needed) from error
    if int(optuna.__version__.split(".")[0]) < 4:
        raise ConfigError(f"{needed}; here is {optuna.__version__}")
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


class Study:
    """A stored study of `n_trials` trials over the swept overrides `space`.

    `storage` is an Optuna storage's address. One process works at a study at a time: `lock` is a
    file that it holds, and FolderTaken says that another does.
    """

    def __init__(
        self,
        space: Sequence[Override],
        *,
        storage: str,
        name: str,
        n_trials: int,
        lower_is_better: bool,
        sampler: str,
        seed: int,
        lock: Path,
    ) -> None:
        self.optuna = import_optuna()
        self.space, self.n_trials, self.sampler, self.seed = space, n_trials, sampler, seed
        try:
            self._lock = take_lock(lock, wait=False)
        except BlockingIOError:
            raise FolderTaken(f"another process works at the study in {lock.parent}") from None
        self._where = f"the study {name} in {storage}"
        with self._reading():
            self.study = self.optuna.create_study(
                storage=storage,
                study_name=name,
                direction="minimize" if lower_is_better else "maximize",
                load_if_exists=True,
            )
            # Left by an earlier process; the lock excludes another.
            running = self.optuna.trial.TrialState.RUNNING
            trials = self.study.get_trials(deepcopy=False)
            self._stored = {name for one in trials for name in one.params}
            self.unfinished = [
                self.optuna.trial.Trial(self.study, one._trial_id)
                for one in self.study.get_trials(deepcopy=False, states=(running,))
            ]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A storage that cannot be read or written ends in a ConfigError that names it."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # SQLAlchemy's and Optuna's, of many kinds
            reason = str(error).split("\n")[0] or type(error).__name__
            raise ConfigError(f"cannot work with {self._where}: {reason}") from error

    def next_trials(self, most: int) -> list[tuple[Any, list[str]]]:
        """At most `most` trials to run now, each with its overrides; none when all have a score."""
        trials: list[tuple[Any, list[str]]] = []
        with self._reading():
            while len(trials) < most and (self.unfinished or self._count() < self.n_trials):
                trial = self.unfinished.pop(0) if self.unfinished else self._ask()
                try:
                    trials.append((trial, [self._suggest(trial, one) for one in self.space]))
                except ValueError as error:
                    raise ConfigError(
                        f"the study {self.study.study_name} was begun with other values: {error}"
                    ) from error
        return trials

    def tell(self, trial: Any, outcome: Outcome) -> None:
        """Store the score of a finished run, or that it failed."""
        with self._reading():
            if outcome.finished:
                self.study.tell(trial, outcome.best)
            else:
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _count(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def _ask(self) -> Any:
        seed = 1000 * self.seed + self._count()
        samplers = self.optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            self.study.sampler = (
                samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=5)
                if self.sampler == "tpe"
                else samplers.RandomSampler(seed=seed)
            )
        return self.study.ask()

    def _suggest(self, trial: Any, override: Override) -> str:
        """The trial's value of a key, drawn unless it is already stored, as an override."""
        key, value = override.get_key_element(), override.value()
        name = first_name(key) if first_name(key) in self._stored else key
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            suggest = trial.suggest_int if whole else trial.suggest_float
            return f"{key}={suggest(name, value.start, value.end, log=log)!r}"
        # Hydra's own spelling of each value: it comes back from the storage as it was.
        return f"{key}={trial.suggest_categorical(name, list(override.sweep_string_iterator()))}"
