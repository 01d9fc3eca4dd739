"""Hydra's entry to captioner.sweeps: it only takes sweepers from the package hydra_plugins.

Every command imports this file while it looks for plugins, so it imports what it needs late.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _CaptionerSweeper(Sweeper):
    """`settings`: those of the dataclass `schema` of captioner.config."""

    schema: ClassVar[str]

    def __init__(self, **settings: Any) -> None:
        self.given = settings

    @property
    def settings(self) -> Any:
        """The settings, checked: Hydra makes sweepers without its schemas' dataclasses."""
        from captioner import config

        return getattr(config, self.schema)(**self.given)

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
        from captioner.commands.failures import explain
        from captioner.config import parse
        from captioner.sweeps.sweep import Sweep

        assert self.config is not None and self.launcher is not None
        return Sweep(
            self.config,
            self.context,
            self.launcher,
            fixed,
            check=lambda composed: dataclasses.asdict(parse(composed)),
            explain=partial(explain, name="train"),
        )


class GridSweeper(_CaptionerSweeper):
    """hydra/sweeper=grid: every combination of values, `max_batch_size` launched at a time."""

    schema = "GridSweepConfig"

    def sweep(self, arguments: list[str]) -> None:
        """Run what is not finished of the grid; SweepFailed when a run failed."""
        from captioner.sweeps.grid import combinations, split_overrides

        settings = self.settings
        fixed, swept = split_overrides(settings.params, arguments)
        sweep = self._sweep(fixed)
        jobs = [sweep.job(one) for one in combinations(swept)]
        size = max(1, settings.max_batch_size or len(jobs))
        for start in range(0, len(jobs), size):
            sweep.run(jobs[start : start + size])
        sweep.close()


class StudySweeper(_CaptionerSweeper):
    """hydra/sweeper=optuna: a stored study of `n_trials`, `n_jobs` of them launched at once: where
    it is null as many as the replicas launcher takes, one for other launchers.

    See captioner.sweeps.study; `storage` null is study.db in the sweep's folder.
    """

    schema = "StudySweepConfig"

    def sweep(self, arguments: list[str]) -> None:
        """Bring the study to its number of trials; SweepFailed when a run failed."""
        from captioner.config import TEXT_METRICS
        from captioner.sweeps.grid import split_overrides
        from captioner.sweeps.study import Study

        settings = self.settings
        fixed, swept = split_overrides(settings.params, arguments)
        sweep = self._sweep(fixed)
        study = Study(
            swept,
            storage=settings.storage or f"sqlite:///{sweep.folder.resolve()}/study.db",
            name=settings.study_name or sweep.folder.name,
            n_trials=settings.n_trials,
            lower_is_better=sweep.config.trainer.best_metric in TEXT_METRICS,
            sampler=settings.sampler,
            seed=settings.seed,
            lock=sweep.folder / "study.lock",
        )
        assert self.config is not None
        most = settings.n_jobs or self.config.hydra.launcher.get("most", 1)
        while trials := study.next_trials(most):
            jobs = [sweep.job(overrides) for _, overrides in trials]
            outcomes = sweep.run(jobs)
            for (trial, _), outcome in zip(trials, outcomes, strict=True):
                study.tell(trial, outcome)
        sweep.close()
