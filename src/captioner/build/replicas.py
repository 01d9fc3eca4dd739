"""What replicas may differ in: K configurations out of one, and runs that can train as replicas."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from captioner import config as schema
from captioner.errors import ConfigError
from captioner.features.source import ImageFeatures
from captioner.runs.folder import flat

# The settings in which replicas may differ: of a run, its trainer, its optimiser or its model.
OWN = tuple(item.name for item in dataclasses.fields(schema.ReplicasConfig))
GROUPS = ("trainer", "optimizer", "model")


def replica_configs(config: schema.TrainConfig) -> list[tuple[schema.TrainConfig, dict[str, Any]]]:
    """The configuration of each replica, as it could be run alone, and what differs in it."""
    count = config.trainer.replicas
    differing = {"seed": [config.seed + k for k in range(count)], **config.replicas.given()}
    trainer = dataclasses.replace(config.trainer, replicas=1, order_seed=order_seed(config))
    config = dataclasses.replace(config, trainer=trainer, replicas=schema.ReplicasConfig())
    found = []
    for k in range(count):
        values = {key: listed[k] for key, listed in differing.items()}
        changes: dict[str, Any] = {
            "seed": values["seed"],
            "run_dir": str(Path(config.run_dir) / f"replica_{k}"),
            "sweep_dir": config.run_dir,
        }
        for group in GROUPS:
            before = getattr(config, group)
            own = {key: value for key, value in values.items() if hasattr(before, key)}
            changes[group] = dataclasses.replace(before, **own)
        found.append((dataclasses.replace(config, **changes), values))
    return found


def shared_settings(config: schema.TrainConfig) -> dict[str, Any]:
    """All by dotted key in which replicas must agree."""
    own = {f"{prefix}{key}" for key in OWN for prefix in ("", *(f"{x}." for x in GROUPS))}
    tree = flat(dataclasses.asdict(config))
    own |= {"run_dir", "sweep_dir"}  # which change no result
    return {key: value for key, value in tree.items() if key not in own}


def shared_config(configs: Sequence[schema.TrainConfig]) -> schema.TrainConfig:
    """The configuration of what these runs share as replicas; ConfigError where such models cannot
    be replicas."""
    first = configs[0]
    if first.trainer.replicas > 1:
        raise ConfigError(f"trainer.replicas={first.trainer.replicas} are a group already")
    trainer = dataclasses.replace(
        first.trainer, replicas=len(configs), order_seed=order_seed(first)
    )
    return dataclasses.replace(first, trainer=trainer)


def group_runs(configs: Sequence[schema.TrainConfig], most: int) -> list[tuple[list[int], str]]:
    """Which runs can train together as replicas, by number, at most so many in a group; and why one
    trains alone, empty of a group."""
    alike: dict[str, list[int]] = {}
    settings = [shared_settings(one) for one in configs]
    for number, shared in enumerate(settings):
        alike.setdefault(repr(shared), []).append(number)
    groups: list[tuple[list[int], str]] = []
    for found in alike.values():
        # Those that read the same batches together: they can be one computation.
        numbers = sorted(found, key=lambda n: order_seed(configs[n]))
        parts = -(-len(numbers) // most)  # of nearly the same size
        bounds = [k * len(numbers) // parts for k in range(parts + 1)]
        why = f"the {len(numbers)} that could train together are more than {most} at a time"
        if len(numbers) == 1:
            others = [one for one in settings if one is not settings[numbers[0]]]
            why = _no_other(settings[numbers[0]], others)
        else:
            try:
                shared_config([configs[n] for n in numbers])
            except ConfigError as error:
                bounds, why = [*range(len(numbers) + 1)], str(error)
        together = [numbers[a:b] for a, b in itertools.pairwise(bounds)]
        groups += [(part, "" if len(part) > 1 else why) for part in together]
    return groups


def _no_other(own: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """Why no other run can train with one: what the nearest of them differs in."""
    if not others:
        return "no other was asked for at the same time"
    differing = [[k for k in {**own, **x} if own.get(k, "") != x.get(k, "")] for x in others]
    keys = ", ".join(sorted(differing, key=len)[0])
    return f"every other differs from it in more than replicas can, such as {keys}"


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
