"""What train.py does, for sweeps, notebooks and tests as well."""

import dataclasses
import logging
from pathlib import Path

from captioner import config as schema
from captioner.build.trainer import build_trainer
from captioner.errors import DataError
from captioner.runs.folder import FolderTaken, claim_run_folder
from captioner.runs.outcome import OUTCOME, Outcome, failure, read_outcome, sole_trainer
from captioner.training.distributed import world

log = logging.getLogger(__name__)


def train(config: schema.TrainConfig) -> Outcome:
    """Train to the end and keep the outcome in the run's folder; a finished run is not repeated.

    A failure is kept there too, and raised. Raises FolderTaken, nothing touched, when the folder
    is another run's or another process trains in it.
    """
    folder = Path(config.run_dir)
    outcome = read_outcome(folder) if config.resume else None
    if outcome is not None and outcome.finished:
        claim_run_folder(folder, dataclasses.asdict(config), resume=True)
        log.info("%s is finished already", folder)
        return outcome
    with sole_trainer(folder):
        try:
            outcome = _train(config)
        except FolderTaken:
            raise
        except Exception as error:
            if world().main:
                try:
                    failure(error).save(folder)
                except DataError as second:  # a full disk, perhaps, which must not hide the first
                    log.warning("%s", second)
            raise
        if world().main:
            outcome.save(folder)
        return outcome


def _train(config: schema.TrainConfig) -> Outcome:
    trainer = build_trainer(config)
    # From here on the folder is this run's, and an earlier failure no longer true.
    if world().main:
        (Path(config.run_dir) / OUTCOME).unlink(missing_ok=True)
    history = trainer.run()
    metric = config.trainer.best_metric
    pick = min if trainer.settings.lower_is_better else max
    best = pick(history, key=lambda figures: figures[metric])
    replica = int(best["replica"]) if "replica" in best else None
    return Outcome(
        "finished", metric=metric, best=best[metric], epoch=int(best["epoch"]), replica=replica
    )
