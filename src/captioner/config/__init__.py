"""Typed schemas of the configuration: every key, its type, its default and what it may be.

Hydra checks keys and types while it composes; the values are checked here, when OmegaConf turns
the composed tree into these dataclasses (`parse`). Nothing but build.py reads them.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from captioner.checks import one_of
from captioner.config.commands import (
    AverageConfig,
    CaptionConfig,
    CompareConfig,
    DemoConfig,
    EvaluateConfig,
    LeaderboardConfig,
    PrepareConfig,
    RunConfig,
    SampleConfig,
    ScoringConfig,
    TrainConfig,
    checkpoint_paths,
)
from captioner.config.data import (
    SPLITS,
    TEXT_SOURCES,
    CocoData,
    DataConfig,
    Flickr8kData,
    FolderData,
    KarpathyData,
    ScenesData,
    TextData,
    VocabularyConfig,
)
from captioner.config.export import ExportConfig
from captioner.config.model import ENCODERS, EncoderConfig, GenerationConfig, ModelConfig, RnnConfig
from captioner.config.sweeps import GridSweepConfig, StudySweepConfig
from captioner.config.training import (
    TEXT_METRICS,
    OptimizerConfig,
    ReplicasConfig,
    TrainerConfig,
)
from captioner.errors import ConfigError

__all__ = [
    "COMMANDS",
    "ENCODERS",
    "GROUPS",
    "SPLITS",
    "TEXT_METRICS",
    "TEXT_SOURCES",
    "AverageConfig",
    "CaptionConfig",
    "CocoData",
    "CompareConfig",
    "DataConfig",
    "DemoConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "ExportConfig",
    "Flickr8kData",
    "FolderData",
    "GenerationConfig",
    "KarpathyData",
    "LeaderboardConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrepareConfig",
    "ReplicasConfig",
    "RnnConfig",
    "RunConfig",
    "SampleConfig",
    "ScenesData",
    "ScoringConfig",
    "TextData",
    "TrainConfig",
    "TrainerConfig",
    "VocabularyConfig",
    "checkpoint_paths",
    "data_config",
    "known_keys",
    "parse",
    "register_command",
    "register_schemas",
]

GROUPS: dict[str, dict[str, type]] = {
    "data": {
        "scenes": ScenesData,
        "flickr8k": Flickr8kData,
        "karpathy": KarpathyData,
        "coco": CocoData,
        "folder": FolderData,
        "text": TextData,
    },
    "encoder": {"base": EncoderConfig},
    "model": {"base": ModelConfig},
    "optimizer": {"base": OptimizerConfig},
    "trainer": {"base": TrainerConfig},
    "generation": {"base": GenerationConfig},
}
COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "average": AverageConfig,
    "compare": CompareConfig,
    "leaderboard": LeaderboardConfig,
    "caption": CaptionConfig,
    "sample": SampleConfig,
    "export": ExportConfig,
    "demo": DemoConfig,
    "prepare_flickr8k": PrepareConfig,
}
SWEEPERS = {"grid": GridSweepConfig, "optuna": StudySweepConfig}


def register_command(name: str, schema: type) -> None:
    """Let `run_command` run a command of another package, with `<name>_schema` in its YAML."""
    COMMANDS[name] = schema


def register_schemas() -> None:
    """Tell Hydra the schemas; each YAML names its own first in its defaults list."""
    store = ConfigStore.instance()
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=f"{name}_schema", node=schema)
    for name, schema in COMMANDS.items():
        store.store(name=f"{name}_schema", node=schema)
    Plugins.instance()  # first: another package's sweeper may be called optuna, too
    for name, sweeper in SWEEPERS.items():
        store.store(group="hydra/sweeper", name=name, node=sweeper, provider="captioner")


def parse(config: DictConfig) -> Any:
    """The composed configuration as dataclasses, every value checked; ConfigError otherwise."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: add {missing[0]}=... to the command")
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).replace("\n", "; ")) from error


def data_config(tree: dict[str, Any]) -> DataConfig:
    """The data schema of a plain dict that a checkpoint or config.yaml holds."""
    one_of("data.kind", tree.get("kind", ""), tuple(GROUPS["data"]))
    schema = GROUPS["data"][tree["kind"]]
    return schema(**tree)


def known_keys(schema: Any, prefix: str = "") -> list[str]:
    """Every key of a schema instance or class, nested ones with dots."""
    keys = []
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        keys.append(key)
        own = [] if item.name in GROUPS else [item.default_factory]
        for inner in (*GROUPS.get(item.name, {}).values(), *own):
            if is_dataclass(inner):
                keys += known_keys(inner, f"{key}.")
    return sorted(set(keys))
