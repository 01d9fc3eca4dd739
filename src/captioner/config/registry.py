"""Which schema stands for which group and command, and how a composed tree is checked."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from captioner.config import commands, data, model, recipe, trained, training
from captioner.config.yaml_files import name_broken_files
from captioner.errors import ConfigError, DataError
from captioner.restore import describe, restore

GROUPS: dict[str, dict[str, type]] = {
    "data": {one.kind: one for one in data.KINDS},
    "encoder": {"base": model.EncoderConfig},
    # An own YAML from before there were kinds names base_schema.
    "model": {"base": model.ModelConfig, **{one.kind: one for one in model.MODELS}},
    "optimizer": {"base": training.OptimizerConfig},
    "trainer": {"base": training.TrainerConfig},
    "generation": {"base": model.GenerationConfig},
}
# Groups that can be left to a checkpoint, or changed in single keys.
TRAINED = {"data": trained.DataChanges, "generation": trained.GenerationChanges}
COMMANDS: dict[str, type] = {
    "train": training.TrainConfig,
    "evaluate": commands.EvaluateConfig,
    "average": commands.AverageConfig,
    "compare": commands.CompareConfig,
    "leaderboard": commands.LeaderboardConfig,
    "caption": commands.CaptionConfig,
    "sample": commands.SampleConfig,
    "export": commands.ExportConfig,
    "demo": commands.DemoConfig,
    "prepare_flickr8k": commands.PrepareConfig,
    "recipe": recipe.RecipeConfig,
}
LAUNCHERS = {"replicas": training.ReplicasLauncherConfig}
SWEEPERS = {"grid": training.GridSweepConfig, "optuna": training.StudySweepConfig}


def register_command(name: str, schema: type) -> None:
    """Let `run_command` run a command of another package, with `<name>_schema` in its YAML."""
    COMMANDS[name] = schema


def register_schemas() -> None:
    """Tell Hydra the schemas; each YAML names its own first in its defaults list."""
    name_broken_files()
    # For every configuration that it composes and every group that it lists Hydra copies its
    # sources, the store among them: a tenth of a second each. Whatever it loads from the store it
    # copies once more, so the store itself need not be.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            _store(f"{name}_schema", schema, group)
    for group, schema in TRAINED.items():
        _store("trained", schema, group)
    for name, schema in COMMANDS.items():
        _store(f"{name}_schema", schema)
    Plugins.instance()  # first: another package's sweeper may be called optuna, too
    for name, sweeper in SWEEPERS.items():
        _store(name, sweeper, "hydra/sweeper")
    for name, launcher in LAUNCHERS.items():
        _store(name, launcher, "hydra/launcher")


def _store(name: str, schema: type, group: str | None = None) -> None:
    """Give Hydra a schema, unless it has just this one already."""
    store = ConfigStore.instance()
    place = store.repo
    for part in group.split("/") if group else ():
        place = place.get(part, {})
    stored = place.get(f"{name}.yaml")
    if stored is None or OmegaConf.get_type(stored.node) is not schema:
        store.store(name, schema, group=group, provider="captioner")


def parse(config: DictConfig) -> Any:
    """The composed configuration as dataclasses, every value checked; ConfigError otherwise."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: add {missing[0]}=... to the command")
        _refuse_added_keys(config)
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given") from error
    except OmegaConfBaseException as error:
        reason = str(error).split("\n")[0][:400]
        raise ConfigError(f"{error.full_key}: {reason}" if error.full_key else reason) from error


def _refuse_added_keys(config: DictConfig, prefix: str = "") -> None:
    """ConfigError for a key that no schema has: Hydra lets +key=value add one to a dataclass."""
    kind = OmegaConf.get_type(config)
    names = {item.name for item in fields(kind)} if is_dataclass(kind) else {*map(str, config)}
    for name in map(str, config):
        if name not in names:
            raise ConfigError(f"there is no key {prefix}{name}: + cannot add one")
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            _refuse_added_keys(node, f"{prefix}{name}.")


def data_config(tree: Any, place: str) -> data.DataConfig:
    """The data schema of a plain dict that a checkpoint holds; DataError names `place`."""
    found: data.DataConfig = restore(_of_kind(GROUPS["data"], tree, "", place), tree, place)
    return found


def model_config(tree: Any, place: str) -> model.ModelConfig:
    """The same of a model; without a kind, as before there were several, it is Show and Tell."""
    schemas = {one.kind: one for one in model.MODELS}
    schema = _of_kind(schemas, tree, model.ModelConfig.kind, place)
    found: model.ModelConfig = restore(schema, tree, place)
    return found


def _of_kind(schemas: Mapping[str, type], tree: Any, default: str, place: str) -> type:
    kind = tree.get("kind", default) if isinstance(tree, dict) else default
    if not isinstance(kind, str) or kind not in schemas:
        raise DataError(
            f"{place}: kind must be one of {', '.join(schemas)}, found {describe(kind)}"
        )
    return schemas[kind]


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
