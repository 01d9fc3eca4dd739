"""Runs of a sweep trained together, as replicas in one process: each folder as of a run alone."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from captioner import config as schema
from captioner.build.replicas import group_runs
from captioner.build.trainer import build_together
from captioner.commands.failures import located
from captioner.commands.train import ended_well, keep_failure, result
from captioner.errors import NumericsError
from captioner.runs.folder import FolderTaken
from captioner.runs.outcome import OUTCOME, sole_trainer
from captioner.training.replicas import ReplicaTrainer

log = logging.getLogger(__name__)


def divide(configs: Sequence[schema.TrainConfig], most: int) -> list[list[int]]:
    """Which runs train together, by number, at most so many in a group; logged, with the reason why
    one trains alone."""
    names = [Path(config.run_dir).name for config in configs]
    groups = group_runs(configs, most)
    for numbers, why in groups:
        if why:
            log.info("%s trains alone: %s", names[numbers[0]], why)
        else:
            listed = "; ".join(names[n] for n in numbers)
            log.info("%d train together, as replicas: %s", len(numbers), listed)
    return [numbers for numbers, _ in groups]


def train_together(configs: Sequence[schema.TrainConfig]) -> list[Exception | None]:
    """Train runs that `build.replicas.group_runs` put into one group, and keep the outcome of each
    in its folder, as `train` does: one that fails leaves the others as they are.

    Gives what each failed of, None where it did not. What is raised was found before any of them
    trained, so that each may yet be trained alone.
    """
    taken: dict[str, Exception] = {}
    with contextlib.ExitStack() as locks:
        for config in configs:
            try:
                locks.enter_context(sole_trainer(Path(config.run_dir)))
            except FolderTaken as error:
                taken[config.run_dir] = error
        ready = [config for config in configs if config.run_dir not in taken]
        locks.enter_context(_logged_in_all([Path(config.run_dir) for config in configs]))
        failed = taken | _train(ready) if ready else taken
    return [failed.get(config.run_dir) for config in configs]


def _train(configs: Sequence[schema.TrainConfig]) -> dict[str, Exception]:
    """Train runs whose folders this process holds; by folder, what those that failed failed of."""
    if configs[0].threads:
        torch.set_num_threads(configs[0].threads)
    trainer = build_together(configs)
    # From here on the folders are these runs', and earlier failures no longer true.
    for config in configs:
        (Path(config.run_dir) / OUTCOME).unlink(missing_ok=True)
    stopped = _run(trainer, configs[0].run_dir)
    failed: dict[str, Exception] = {}
    for config, replica in zip(configs, trainer.replicas, strict=True):
        folder = Path(config.run_dir)
        own = NumericsError(replica.failure) if replica.failure else stopped
        if own is None:
            try:
                others = [Path(one.run_dir).name for one in configs if one is not config]
                outcome = ended_well(config, replica.trainer.progress.history)
                outcome = dataclasses.replace(outcome, together=others)
                outcome.save(folder)
                print(result(config, outcome), flush=True)
            except Exception as error:
                own = error
        if own is not None:
            failed[config.run_dir] = own
            keep_failure(own, folder)
    return failed


def _run(trainer: ReplicaTrainer, folder: str) -> Exception | None:
    """Train to the end; what stopped all that had not failed by themselves."""
    try:
        with located(folder):
            trainer.run()
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def _logged_in_all(folders: Sequence[Path]) -> Iterator[None]:
    """What is logged into the first run's folder is logged into the others' as well."""
    root, added = logging.getLogger(), list[logging.Handler]()
    first = folders[0].absolute()
    for own in root.handlers:
        if isinstance(own, logging.FileHandler) and Path(own.baseFilename).parent == first:
            name, format = Path(own.baseFilename).name, own.formatter
            for folder in folders[1:]:
                added.append(
                    logging.FileHandler(folder / name, encoding=own.encoding, errors=own.errors)
                )
                added[-1].setFormatter(format)
    for handler in added:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in added:
            root.removeHandler(handler)
            handler.close()
