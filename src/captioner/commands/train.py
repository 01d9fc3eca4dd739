"""What train.py does, for sweeps, notebooks and tests as well."""

import contextlib
import dataclasses
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from captioner import config as schema
from captioner.build.checkpoint import task_of_data
from captioner.build.components import read_data
from captioner.build.trainer import build_trainer
from captioner.commands.table import typed, typed_path
from captioner.errors import CaptionerError, DataError
from captioner.runs.folder import FolderTaken, claim_run_folder
from captioner.runs.outcome import OUTCOME, Outcome, failure, read_outcome, sole_trainer
from captioner.training.distributed import world
from captioner.training.reporting import figure

log = logging.getLogger(__name__)


def run(config: schema.TrainConfig) -> float | None:
    """Train to the end, say where the result lies, and return the score for a sweep to compare."""
    try:
        outcome = train(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; nothing finished is lost. Continue with the same command and "
            f"run_dir={config.run_dir} resume=true"
        ) from None
    if world().main:
        print(result(config, outcome))
        in_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
        if not in_sweep:
            print("next:", *next_commands(config), sep="\n  ")
    return outcome.best


def result(config: schema.TrainConfig, outcome: Outcome) -> str:
    """One line: a finished run's best score, its epoch and where its weights are."""
    replica = "" if outcome.replica is None else f" of replica {outcome.replica}"
    best = figure(str(outcome.metric), outcome.best or 0.0)
    return f"best {outcome.metric} {best} in epoch {outcome.epoch}{replica}; {_best(config)}"


def next_commands(config: schema.TrainConfig) -> list[str]:
    """What one would type after a run, as it is typed here: score its best checkpoint, use it, and
    open the page, or rank all runs where the page's library is missing."""
    best = _best(config)
    commands = [typed("evaluate", checkpoint=best, split="dev")]
    if task_of_data(config.data.kind) == "text":
        commands.append(typed("sample", checkpoint=best, length=300))
    elif (image := _example(config)) is not None:
        commands.append(typed("caption", checkpoint=best, images=image))
    if importlib.util.find_spec("gradio") is not None:
        commands.append(typed("demo", checkpoint=best))
    else:
        commands.append(f"{typed('leaderboard')} {typed_path(Path(config.run_dir).parent)}")
    return commands


def _best(config: schema.TrainConfig) -> str:
    return f"{config.run_dir}/best.pt"


def _example(config: schema.TrainConfig) -> Path | None:
    """An image to caption, of the dev split; none for features of the user's own."""
    if config.encoder.kind == "features":
        return None
    try:
        return read_data(config.data).split("dev")[0].path
    except (CaptionerError, OSError):
        return None


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
    # Of the processes of one distributed run the first holds the folder for all.
    with sole_trainer(folder) if world().main else contextlib.nullcontext():
        try:
            outcome = _train(config)
        except FolderTaken:
            raise
        except Exception as error:
            if world().main:
                keep_failure(error, folder)
            raise
        if world().main:
            outcome.save(folder)
        return outcome


def keep_failure(error: BaseException, folder: Path) -> None:
    """Write why a run failed into its folder, where that can be written."""
    try:
        failure(error).save(folder)
    except DataError as second:  # a full disk, perhaps, which must not hide the first
        log.warning("%s", second)


def _train(config: schema.TrainConfig) -> Outcome:
    trainer = build_trainer(config)
    # From here on the folder is this run's, and an earlier failure no longer true.
    if world().main:
        (Path(config.run_dir) / OUTCOME).unlink(missing_ok=True)
    return ended_well(config, trainer.run())


def ended_well(config: schema.TrainConfig, history: Sequence[Mapping[str, float]]) -> Outcome:
    """The outcome of a run that was trained to its end, from the figures of its epochs."""
    metric = config.trainer.best_metric
    pick = min if metric in schema.TEXT_METRICS else max
    best = pick(history, key=lambda figures: figures[metric])
    replica = int(best["replica"]) if "replica" in best else None
    return Outcome(
        "finished", metric=metric, best=best[metric], epoch=int(best["epoch"]), replica=replica
    )
