"""A training run from its configuration: captions or text, one model or several."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from captioner import config as schema
from captioner.build.backend import name_backend, validating_in_float32
from captioner.build.captioning import CaptionTask
from captioner.build.checkpoint import task_of_data
from captioner.build.components import build_optimizer, pick_device, trainer_settings
from captioner.build.initial import resumes, start_from
from captioner.build.language_modeling import TextTask
from captioner.build.memory import require_memory_for_training
from captioner.build.replicas import order_seed, replica_configs, shared_config
from captioner.data.resident import ResidentCaptions
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError
from captioner.profiling import listening, span
from captioner.runs.folder import claim_run_folder, summary_writer, write_vocabulary
from captioner.runs.halving import SuccessiveHalving
from captioner.training.distributed import World, world
from captioner.training.memory import keep_freed_memory
from captioner.training.randomness import OwnRandomness
from captioner.training.replicas import Replica, ReplicaTrainer
from captioner.training.reporting import Reporting
from captioner.training.setup import Order, Score, TrainingSetup
from captioner.training.step import Objective
from captioner.training.timing import Phases
from captioner.training.trainer import Trainer

log = logging.getLogger(__name__)


class Task(Protocol):
    """What differs between captions and text: the data that the runs of one configuration share,
    and the model of each."""

    vocabulary: Vocabulary
    data: ResidentCaptions | None  # the training data on the device, for steps that are captured
    score: Score | None  # makes the scores of what a validator measured; None: it gives scores

    def batches(self, seed: int) -> tuple[Order, Iterable[Any]]:
        """The order of a seed, and the training batches in it, or plans of those that are gathered
        from `data`: the same two objects whenever it is asked."""

    def require_memory(self, config: schema.TrainConfig) -> None:
        """ConfigError where training would not fit, words and features being known."""

    def new_model(self, config: schema.TrainConfig, *, replica: bool) -> nn.Module:
        """A model initialised from the seed; `replica` where others train beside it."""

    def validator(
        self, config: schema.TrainConfig, model: Any, writer: Any
    ) -> Callable[[int], dict[str, Any]]:
        """Measures the model on the dev split, called with the step number."""

    def texts(self, config: schema.TrainConfig, model: Any) -> dict[str, str]:
        """What a checkpoint holds besides weights."""

    def objective(self, config: schema.TrainConfig, model: Any) -> Objective | None:
        """What steps minimise where it is not the cross-entropy of the batches."""

    def at_epoch(self, config: schema.TrainConfig, model: Any) -> Callable[[int], None] | None:
        """What changes of the model with the number of an epoch, from 0."""


TASKS: dict[str, Callable[[schema.TrainConfig, torch.device, World], Task]] = {
    "captions": CaptionTask,
    "text": TextTask,
}


def build_trainer(config: schema.TrainConfig) -> Trainer | ReplicaTrainer:
    """Everything of a training run, wired and, where the folder holds a run to resume, resumed."""
    phases = Phases()
    with listening(phases):
        ranks = world()
        ranks.from_main(lambda: _claim(config))
        device, task = _begin_run(config, ranks)
        if ranks.main:
            write_vocabulary(Path(config.run_dir), task.vocabulary)
        with span("model, optimiser and trainer"):
            trainer: Trainer | ReplicaTrainer
            if config.trainer.replicas == 1:
                trainer = _make_trainer(task, config, device, ranks)
            else:
                trainer = _make_replicas(task, config, device, ranks)
        _log_size(trainer)
        if config.resume:
            with span("checkpoint to resume from"):
                trainer.resume()
    if isinstance(trainer, Trainer) and ranks.main:
        trainer.timing.start = phases
    return trainer


def build_together(configs: Sequence[schema.TrainConfig]) -> ReplicaTrainer:
    """Runs of one process that `group_runs` found to be replicas of each other, each in its own
    folder and, where that holds a run to resume, resumed.

    One whose last.pt cannot be continued from is left out, that reason its `failure`.
    """
    for own in configs:
        _claim(own)
    shared, ranks = shared_config(configs), world()
    device, task = _begin_run(shared, ranks)
    replicas = []
    for own in configs:
        folder = Path(own.run_dir)
        write_vocabulary(folder, task.vocabulary)
        replica = Replica(_make_trainer(task, own, device, ranks, folder.name))
        replicas.append(replica)
        if own.resume:
            try:
                replica.trainer.resume()
            except CheckpointError as error:
                replica.failure = str(error)
    trainer = ReplicaTrainer(replicas, device=device, show_progress=shared.trainer.progress)
    _log_size(trainer)
    return trainer


def _claim(config: schema.TrainConfig) -> None:
    """Make the run's folder its own, and say what it will hold."""
    folder = Path(config.run_dir)
    claim_run_folder(folder, dataclasses.asdict(config), resume=config.resume)
    log.info(
        "run: %s (log train.log, scores history.json, weights best.pt and last.pt, curves "
        "tensorboard/)",
        folder,
    )


def _begin_run(config: schema.TrainConfig, ranks: World) -> tuple[torch.device, Task]:
    """The device and the data; before any of that is read, who computes is logged, and on a CPU
    freed memory is kept."""
    device = pick_device(config.device)
    require_memory_for_training(config, device)
    if ranks.size > 1:
        threads = torch.get_num_threads()
        log.info("%d processes on %s, threads each: %d", ranks.size, device.type, threads)
    name_backend(config.rnn.kind, config.model.backend, device)
    if device.type == "cpu":
        keep_freed_memory()
    task = TASKS[task_of_data(config.data.kind)](config, device, ranks)
    log.info("vocabulary: %d tokens", len(task.vocabulary))
    task.require_memory(config)
    return device, task


def _make_trainer(
    task: Task, config: schema.TrainConfig, device: torch.device, ranks: World, name: str = ""
) -> Trainer:
    """A new model's trainer in `config.run_dir`; `name` is that of one among several."""
    folder = Path(config.run_dir)
    model = task.new_model(config, replica=bool(name))
    texts = task.texts(config, model)
    if config.init_from is not None and not resumes(config.run_dir, config.resume):
        start_from(config.init_from, model, task.vocabulary, texts)
    model = model.to(device)
    random = OwnRandomness(device) if name else None
    writer = summary_writer(folder) if ranks.main else None
    show = config.trainer.progress and not name
    validate = task.validator(config, model, writer)
    order, loader = task.batches(order_seed(config))
    return Trainer(
        TrainingSetup(
            model=model,
            optimizer=build_optimizer(config, model),
            loader=loader,
            order=order,
            validate=validating_in_float32(validate, model, config.model.backend),
            texts=texts,
            score=task.score,
            data=task.data,
            objective=task.objective(config, model),
            at_epoch=task.at_epoch(config, model),
            rungs=_rungs(config),
        ),
        folder=folder,
        settings=trainer_settings(config),
        device=device,
        world=ranks,
        random=random,
        reporting=Reporting(writer=writer, show_progress=show, name=name),
    )


def _rungs(config: schema.TrainConfig) -> SuccessiveHalving | None:
    """What compares a run with the others of its sweep, where that is asked for."""
    folder, settings = Path(config.run_dir), config.trainer
    if settings.halving_epoch is None or folder.parent != Path(config.sweep_dir):
        return None
    lower = settings.best_metric in schema.TEXT_METRICS
    return SuccessiveHalving(
        folder, settings.best_metric, lower, settings.halving_epoch, settings.halving_factor
    )


def _log_size(trainer: Trainer | ReplicaTrainer) -> None:
    first = trainer if isinstance(trainer, Trainer) else trainer.replicas[0].trainer
    log.info("model: %s parameters", f"{sum(p.numel() for p in first.model.parameters()):,}")


def _make_replicas(
    task: Task, config: schema.TrainConfig, device: torch.device, ranks: World
) -> ReplicaTrainer:
    """The trainers of all replicas, each in a folder of its own.

    Raises ConfigError under torchrun: they share one process.
    """
    if ranks.size > 1:
        raise ConfigError(
            f"trainer.replicas={config.trainer.replicas} train in one process, but there are "
            f"{ranks.size}; start the command without torchrun"
        )
    replicas = []
    for k, (own, differs) in enumerate(replica_configs(config)):
        claim_run_folder(Path(own.run_dir), dataclasses.asdict(own), resume=config.resume)
        trainer = _make_trainer(task, own, device, ranks, f"replica {k}")
        replicas.append(Replica(trainer, differs))
    return ReplicaTrainer(
        replicas,
        folder=Path(config.run_dir),
        device=device,
        show_progress=config.trainer.progress,
    )
