"""trainer.replicas=K: K configurations out of one."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from captioner import config as schema
from captioner.errors import ConfigError
from captioner.features.source import ImageFeatures


def replica_configs(config: schema.TrainConfig) -> list[tuple[schema.TrainConfig, dict[str, Any]]]:
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
            before = getattr(config, group)
            own = {key: value for key, value in values.items() if hasattr(before, key)}
            changes[group] = dataclasses.replace(before, **own)
        found.append((dataclasses.replace(config, **changes), values))
    return found


def order_seed(config: schema.TrainConfig) -> int:
    """The seed of the batches' order."""
    given = config.trainer.order_seed
    return config.seed if given is None else given


def refuse_other_stages(own: ImageFeatures, shared: ImageFeatures) -> None:
    """ConfigError where a replica's encoder has other frozen stages than the cache is of."""
    if own.split and own.fingerprint != shared.fingerprint:
        raise ConfigError(
            "replicas share the cached output of frozen stages, but with encoder.weights=random "
            "each seed has other stages; take other weights, or encoder.frozen_stages=computed"
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
