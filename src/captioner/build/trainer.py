"""A training run from its configuration: captions or text, one model or several."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
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
from captioner.build.replicas import replica_configs
from captioner.data.resident import ResidentCaptions
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.profiling import listening, span
from captioner.runs.folder import claim_run_folder, summary_writer, write_vocabulary
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
    order: Order
    loader: Iterable[Any]  # batches, or plans of those that are gathered from `data`
    data: ResidentCaptions | None  # the training data on the device, for steps that are captured
    score: Score | None  # makes the scores of what a validator measured; None: it gives scores

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


TASKS: dict[str, Callable[[schema.TrainConfig, torch.device, World], Task]] = {
    "captions": CaptionTask,
    "text": TextTask,
}


def build_trainer(config: schema.TrainConfig) -> Trainer | ReplicaTrainer:
    """Everything of a training run, wired and, where the folder holds a run to resume, resumed."""
    phases = Phases()
    with listening(phases):
        device, ranks = _begin_run(config)
        task = TASKS[task_of_data(config.data.kind)](config, device, ranks)
        log.info("vocabulary: %d tokens", len(task.vocabulary))
        if ranks.main:
            write_vocabulary(Path(config.run_dir), task.vocabulary)
        make = _make_trainer if config.trainer.replicas == 1 else _make_replicas
        with span("model, optimiser and trainer"):
            trainer: Trainer | ReplicaTrainer = make(task, config, device, ranks)
        if config.resume:
            with span("checkpoint to resume from"):
                trainer.resume()
    if isinstance(trainer, Trainer) and ranks.main:
        trainer.timing.start = phases
    return trainer


def _begin_run(config: schema.TrainConfig) -> tuple[torch.device, World]:
    """What comes before any data is read: the run's folder claimed, its device and processes; who
    computes is logged, and on a CPU freed memory is kept."""
    folder, ranks = Path(config.run_dir), world()
    ranks.from_main(
        lambda: claim_run_folder(folder, dataclasses.asdict(config), resume=config.resume)
    )
    log.info(
        "run: %s (log train.log, scores history.json, weights best.pt and last.pt, curves "
        "tensorboard/)",
        folder,
    )
    device = pick_device(config.device)
    require_memory_for_training(config, device)  # again when words and features are known
    if ranks.size > 1:
        threads = torch.get_num_threads()
        log.info("%d processes on %s, threads each: %d", ranks.size, device.type, threads)
    name_backend(config.rnn.kind, config.model.backend, device)
    if device.type == "cpu":
        keep_freed_memory()
    return device, ranks


def _make_trainer(
    task: Task, config: schema.TrainConfig, device: torch.device, ranks: World, replica: str = ""
) -> Trainer:
    """A new model's trainer in `config.run_dir`; `replica` names one among several."""
    folder = Path(config.run_dir)
    model = task.new_model(config, replica=bool(replica))
    texts = task.texts(config, model)
    if config.init_from is not None and not resumes(config.run_dir, config.resume):
        start_from(config.init_from, model, task.vocabulary, texts)
    model = model.to(device)
    random = OwnRandomness(device) if replica else None
    if replica in ("", "replica 0"):
        log.info("model: %s parameters", f"{sum(p.numel() for p in model.parameters()):,}")
    writer = summary_writer(folder) if ranks.main else None
    show = config.trainer.progress and not replica
    validate = task.validator(config, model, writer)
    return Trainer(
        TrainingSetup(
            model=model,
            optimizer=build_optimizer(config, model),
            loader=task.loader,
            order=task.order,
            validate=validating_in_float32(validate, model, config.model.backend),
            texts=texts,
            score=task.score,
            data=task.data,
            objective=task.objective(config, model),
        ),
        folder=folder,
        settings=trainer_settings(config),
        device=device,
        world=ranks,
        random=random,
        reporting=Reporting(writer=writer, show_progress=show, name=replica),
    )


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
        loader=task.loader,
        order=task.order,
        folder=Path(config.run_dir),
        device=device,
        show_progress=config.trainer.progress,
    )
