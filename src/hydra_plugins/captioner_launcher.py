"""Hydra's entry to training runs together: it only takes launchers from the package hydra_plugins.

Every command imports this file while it looks for plugins, so it imports what it needs late.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

log = logging.getLogger(__name__)


class ReplicasLauncher(BasicLauncher):
    """hydra/launcher=replicas: runs that can be replicas of each other train in one process, at
    most `most` at a time; the others one after another, as with Hydra's own launcher."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.given = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives a launcher; ConfigError for settings that cannot be."""
        from captioner.config import ReplicasLauncherConfig

        self.most = ReplicasLauncherConfig(**self.given).most
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; how each ended. The log says which ran together, and why one ran alone."""
        from captioner.commands.train_together import divide

        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [
            self._composed(overrides, initial_job_idx + k)
            for k, overrides in enumerate(job_overrides)
        ]
        configs = [_parsed(job) for job in jobs]
        returns: dict[int, JobReturn] = {}
        for numbers in divide(configs, self.most):
            together = None
            if len(numbers) > 1:
                together = self._together([jobs[n] for n in numbers], [configs[n] for n in numbers])
            if together is None:
                together = []
                for n in numbers:
                    together += super().launch([job_overrides[n]], initial_job_idx + n)
            returns |= zip(numbers, together, strict=True)
        return [returns[number] for number in range(len(jobs))]

    def _together(
        self, jobs: Sequence[DictConfig], configs: Sequence[Any]
    ) -> list[JobReturn] | None:
        """Run a group; None, the reason logged, where it turned out that it cannot be one."""
        from captioner.commands.train_together import train_together

        assert self.config is not None and self.hydra_context is not None
        done = run_job(
            task_function=lambda first: train_together(configs),
            config=jobs[0],
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if done.status is JobStatus.FAILED:
            log.info("these train one after another: %s", done._return_value)
            return None
        returns = []
        for job, error in zip(jobs, done.return_value, strict=True):
            status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
            returns.append(JobReturn(cfg=job, status=status, _return_value=error))
        return returns

    def _composed(self, overrides: Sequence[str], number: int) -> DictConfig:
        """A job's configuration, Hydra's own among it."""
        assert self.config is not None and self.hydra_context is not None
        composed: DictConfig = self.hydra_context.config_loader.load_sweep_config(
            self.config, list(overrides)
        )
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        return composed


def _parsed(job: DictConfig) -> Any:
    """A job's configuration as its task takes it."""
    from captioner.config import parse

    own = copy.deepcopy(job)
    with read_write(own), open_dict(own):
        del own["hydra"]
    return parse(own)
