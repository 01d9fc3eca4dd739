"""Schemas of the sweepers: what `hydra.sweeper.*` may be in a sweep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GridSweepConfig:
    """hydra/sweeper=grid: every combination of the values that are given with commas.

    max_batch_size: how many runs are launched before the first of them are waited for (null: all);
    params: keys and values as on the command line, for a sweep that is written down.
    """

    _target_: str = "hydra_plugins.captioner_sweepers.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


@dataclass
class StudySweepConfig:
    """hydra/sweeper=optuna: a stored Optuna study of trainer.best_metric; the extra [sweeps].

    n_trials: of the whole study, those of earlier processes among them; n_jobs: trials launched at
    once; storage: an Optuna storage (null: sqlite, study.db in the sweep's folder); study_name
    (null: the folder's name); sampler tpe or random; params: intervals and values as on the command
    line, for a search space that is written down.
    """

    _target_: str = "hydra_plugins.captioner_sweepers.StudySweeper"
    n_trials: int = 20
    n_jobs: int = 1
    storage: str | None = None
    study_name: str | None = None
    sampler: str = "tpe"
    seed: int = 0
    params: dict[str, str] | None = None
