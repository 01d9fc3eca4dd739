"""Hydra's way to captioner.sweeps: it only takes sweepers from the package hydra_plugins.

Every command imports this file while it looks for plugins, so it imports what it needs late.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _CaptionerSweeper(Sweeper):
    """What both have: the launcher, and where the runs lie."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives a sweeper."""
        from hydra.core.plugins import Plugins

        self.config, self.context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def _sweep(self, fixed: list[str]) -> Any:
        from captioner.sweeps.sweep import Sweep

        assert self.config is not None and self.launcher is not None
        return Sweep(self.config, self.context, self.launcher, fixed)


class GridSweeper(_CaptionerSweeper):
    """hydra/sweeper=grid: every combination of values, `max_batch_size` launched at a time."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params

    def sweep(self, arguments: list[str]) -> None:
        """Run what is not finished of the grid; SweepFailed when a run failed."""
        from captioner.sweeps.grid import combinations, split_overrides

        fixed, swept = split_overrides(self.params, arguments)
        sweep = self._sweep(fixed)
        jobs = [sweep.job(one) for one in combinations(swept)]
        size = max(1, self.max_batch_size or len(jobs))
        for start in range(0, len(jobs), size):
            sweep.run(jobs[start : start + size])
        sweep.close()


class StudySweeper(_CaptionerSweeper):
    """hydra/sweeper=optuna: a stored study of `n_trials`, `n_jobs` of them launched at once.

    See captioner.sweeps.study; `storage` null is study.db in the sweep's folder.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        storage: str | None,
        study_name: str | None,
        sampler: str,
        seed: int,
        params: dict[str, str] | None,
    ) -> None:
        self.n_trials, self.n_jobs, self.storage = n_trials, n_jobs, storage
        self.study_name, self.sampler, self.seed, self.params = study_name, sampler, seed, params

    def sweep(self, arguments: list[str]) -> None:
        """Bring the study to its number of trials; SweepFailed when a run failed."""
        from captioner.config import TEXT_METRICS
        from captioner.sweeps.grid import split_overrides
        from captioner.sweeps.study import Study

        fixed, swept = split_overrides(self.params, arguments)
        sweep = self._sweep(fixed)
        study = Study(
            swept,
            storage=self.storage or f"sqlite:///{sweep.folder.resolve()}/study.db",
            name=self.study_name or sweep.folder.name,
            n_trials=self.n_trials,
            lower_is_better=sweep.config.trainer.best_metric in TEXT_METRICS,
            sampler=self.sampler,
            seed=self.seed,
            lock=sweep.folder / "study.lock",
        )
        while trials := study.next_trials(max(1, self.n_jobs)):
            jobs = [sweep.job(overrides) for _, overrides in trials]
            outcomes = sweep.run(jobs)
            for (trial, _), outcome in zip(trials, outcomes, strict=True):
                study.tell(trial, outcome)
        sweep.close()
