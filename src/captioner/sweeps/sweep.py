"""A sweep: its runs' folders, what is left to do in them, and how each of them ended.

The state of a sweep lies in its runs' folders, so that it can be killed at any time: the same
command skips finished runs and gives the others to the launcher, to resume from their last
checkpoints.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from captioner.errors import CaptionerError, ConfigError, DataError
from captioner.leaderboard.gather import gather
from captioner.leaderboard.table import format_boards, make_boards
from captioner.runs.folder import FolderTaken, check_same_run
from captioner.runs.name import run_name, values_of
from captioner.runs.outcome import Outcome, failure, read_outcome

log = logging.getLogger(__name__)


class SweepFailed(CaptionerError):
    """Some runs of a sweep failed; the others came to their end."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its folder and the overrides that make it."""

    folder: Path
    overrides: tuple[str, ...]


class Sweep:
    """The runs of one command, in the folder `sweep_dir`.

    `fixed` are the overrides that all runs share. `check` gives a composed configuration's values,
    or raises ConfigError; `explain` says an error of Hydra's in a sentence.
    """

    def __init__(
        self,
        config: DictConfig,
        context: HydraContext,
        launcher: Launcher,
        fixed: Sequence[str],
        *,
        check: Callable[[DictConfig], dict[str, Any]],
        explain: Callable[[Exception], str],
    ) -> None:
        self.config, self.context, self.launcher = config, context, launcher
        self.check, self.explain = check, explain
        self.folder = Path(config.hydra.sweep.dir)
        self.fixed = tuple(one for one in fixed if not one.startswith("sweep_dir="))
        self.launched = 0
        self.outcomes: dict[Path, Outcome] = {}
        if any(one.startswith(("run_dir=", "resume=")) for one in fixed):
            raise ConfigError("the runs of a sweep lie in sweep_dir=..., which resumes them")

    def job(self, swept: Sequence[str]) -> Job:
        """The run that differs from the others in the overrides `swept`."""
        name = run_name(values_of(swept))
        folder = self.folder / name
        own = [f"{key}={quoted(self.folder)}" for key in ("hydra.sweep.dir", "sweep_dir")]
        own += [f"hydra.sweep.subdir={quoted(name)}", f"run_dir={quoted(folder)}", "resume=true"]
        one_process = isinstance(self.launcher, BasicLauncher)
        if not one_process and not any(one.startswith("trainer.progress=") for one in self.fixed):
            own.append("trainer.progress=false")  # bars of several runs would mix
        return Job(folder, (*self.fixed, *swept, *own))

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Bring all `jobs` to an end, one that failed too, and return how each ended.

        Raises ConfigError, before anything runs, when there is no such key or when a folder holds
        a run of another configuration.
        """
        distinct = list({job.folder: job for job in jobs}.values())
        ended = self._refuse(distinct)
        found = {job.folder: read_outcome(job.folder) for job in distinct}
        ended |= {folder: one for folder, one in found.items() if one and one.finished}
        waiting = [job for job in distinct if job.folder not in ended]
        log.info("%s: %d of %d runs to do", self.folder, len(waiting), len(distinct))
        self.outcomes |= ended | self._launch(waiting)
        return [self.outcomes[job.folder] for job in jobs]

    def close(self) -> None:
        """Print the leaderboard of the sweep's folder; SweepFailed when one of its runs failed."""
        gathered = gather([self.folder])  # with the runs of earlier commands
        print(format_boards(make_boards(gathered.runs), gathered.notes))
        failed = {folder: one for folder, one in self.outcomes.items() if not one.finished}
        if failed:
            lines = [f"  {folder.name}: {outcome.reason}" for folder, outcome in failed.items()]
            failures = f"{len(failed)} of {len(self.outcomes)} runs failed"
            raise SweepFailed("\n".join([failures, *lines]))

    def _refuse(self, jobs: Sequence[Job]) -> dict[Path, Outcome]:
        """The jobs with a value that cannot be, each with the reason kept in its folder."""
        refused = {}
        for job in jobs:
            composed = None
            try:
                composed = self._compose(job)
                check_same_run(job.folder, self.check(composed))
            except FolderTaken:
                raise
            except (ConfigError, HydraException, OmegaConfBaseException) as error:
                if "Could not override" in str(error):  # no such key, so no run can have it
                    raise
                reason = str(error) if isinstance(error, ConfigError) else self.explain(error)
                refused[job.folder] = failure(ConfigError(reason), _plain(composed))
        for folder, outcome in refused.items():
            log.warning("%s: %s", folder, outcome.reason)
            outcome.save(folder)
        return refused

    def _compose(self, job: Job) -> DictConfig:
        """A job's configuration as its task will see it."""
        load = self.context.config_loader.load_sweep_config
        composed = copy.deepcopy(load(self.config, list(job.overrides)))
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        return composed

    def _launch(self, waiting: Sequence[Job]) -> dict[Path, Outcome]:
        """Run the jobs; how each ended, also where the launcher fails."""
        if not waiting:
            return {}
        returns: Sequence[JobReturn | None] = [None] * len(waiting)
        lost = DataError("the process ended before the run did")
        try:
            returns = self.launcher.launch(
                [list(job.overrides) for job in waiting], initial_job_idx=self.launched
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped; nothing finished is lost. Continue with the same command and "
                f"sweep_dir={self.folder}"
            ) from None
        except Exception as error:  # a killed worker, a lost node: the folders know what finished
            log.warning("%s: %s", type(error).__name__, error)
            lost = DataError(f"the launcher failed: {failure(error).reason}")
        self.launched += len(waiting)
        return {
            job.folder: _ending(job, one, lost) for job, one in zip(waiting, returns, strict=True)
        }


def _ending(job: Job, returned: JobReturn | None, lost: Exception) -> Outcome:
    """How a launched job ended: what its folder says, else what its process did."""
    raised = returned._return_value if returned and returned.status is JobStatus.FAILED else None
    if isinstance(raised, FolderTaken):  # that folder is not this job's to write in
        return failure(raised)
    outcome = read_outcome(job.folder)
    if outcome is None:
        outcome = failure(raised if isinstance(raised, Exception) else lost)
        outcome.save(job.folder)
    return outcome


def _plain(composed: DictConfig | None) -> dict[str, Any] | None:
    """A refused configuration as far as it can be read."""
    try:
        tree: Any = OmegaConf.to_container(composed, resolve=True) if composed is not None else None
    except OmegaConfBaseException:
        return None
    return tree


def quoted(text: Path | str) -> str:
    """A text in Hydra's quotes."""
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"
