"""trainer.replicas=K: K configurations out of one, and their trainers side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from captioner import config as schema
from captioner.errors import ConfigError
from captioner.runs.folder import claim_run_folder
from captioner.training.distributed import World
from captioner.training.replicas import Replica, ReplicaTrainer
from captioner.training.step import Batch
from captioner.training.trainer import Order, Trainer

# Where each list of ReplicasConfig belongs in a configuration.
PLACES = {
    "lr": "optimizer",
    "weight_decay": "optimizer",
    "input_dropout": "model",
    "output_dropout": "model",
    "layer_dropout": "model",
    "feature_dropout": "model",
}


class Parts(Protocol):
    """What the runs of one data set share, and a trainer made of it."""

    @property
    def loader(self) -> Iterable[Batch]:
        """The batches of the training split."""

    @property
    def order(self) -> Order:
        """The order that `loader` follows."""

    def trainer(self, config: schema.TrainConfig, *, replica: str = "") -> Trainer:
        """A new model's trainer in `config.run_dir`; `replica` names one among several."""


def replica_configs(
    config: schema.TrainConfig,
) -> list[tuple[schema.TrainConfig, dict[str, Any]]]:
    """The configuration of each replica, as it could be run alone, and what differs in it."""
    count = config.trainer.replicas
    differing = {"seed": [config.seed + k for k in range(count)], **config.replicas.given()}
    found = []
    for k in range(count):
        values = {key: listed[k] for key, listed in differing.items()}
        changes: dict[str, Any] = {
            "seed": values["seed"],
            "run_dir": str(Path(config.run_dir) / f"replica_{k}"),
            "replicas": schema.ReplicasConfig(),
            "trainer": dataclasses.replace(
                config.trainer, replicas=1, order_seed=order_seed(config)
            ),
        }
        for group in ("optimizer", "model"):
            own = {key: v for key, v in values.items() if PLACES.get(key) == group}
            changes[group] = dataclasses.replace(getattr(config, group), **own)
        found.append((dataclasses.replace(config, **changes), values))
    return found


def order_seed(config: schema.TrainConfig) -> int:
    """The seed of the batches' order."""
    given = config.trainer.order_seed
    return config.seed if given is None else given


def train_side_by_side(
    config: schema.TrainConfig, parts: Parts, device: torch.device, world: World
) -> ReplicaTrainer:
    """The trainers of all replicas, each in a folder of its own.

    Raises ConfigError under torchrun: they share one process.
    """
    if world.size > 1:
        raise ConfigError(
            f"trainer.replicas={config.trainer.replicas} train in one process, but there are "
            f"{world.size}; start the command without torchrun"
        )
    replicas = []
    for k, (own, differs) in enumerate(replica_configs(config)):
        claim_run_folder(Path(own.run_dir), dataclasses.asdict(own), resume=config.resume)
        replicas.append(Replica(parts.trainer(own, replica=f"replica {k}"), differs))
    return ReplicaTrainer(
        replicas,
        loader=parts.loader,
        order=parts.order,
        folder=Path(config.run_dir),
        device=device,
        show_progress=config.trainer.progress,
    )


def refuse_shared_draws(encoder: nn.Module) -> None:
    """ConfigError for an encoder whose own dropout would draw from what all threads share."""
    for module in encoder.modules():
        kind = type(module).__name__
        rate = getattr(module, "p", getattr(module, "drop_prob", 0)) or 0
        if kind.startswith(("Dropout", "StochasticDepth", "DropPath")) and rate > 0:
            raise ConfigError(
                f"replicas cannot train an encoder that has {kind} in it: it would draw from a "
                "generator that all replicas share; take encoder=plain or a network without"
            )
