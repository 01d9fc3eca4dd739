"""A checkpoint's own settings of its data and of generation, as a command line changes them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioner import config as schema
from captioner.build.checkpoint import stored_config
from captioner.checks import one_of
from captioner.errors import ConfigError
from captioner.restore import restore
from captioner.training.checkpoint import Checkpoint

Settings = TypeVar("Settings")


def stored_generation(checkpoint: Checkpoint) -> schema.GenerationConfig:
    """The settings of generation that a captioner's training was validated with."""
    settings = stored_config(checkpoint).get("generation", {})
    place = "the checkpoint: config: generation"
    generation: schema.GenerationConfig = restore(schema.GenerationConfig, settings, place)
    return generation


def generation_of(checkpoint: Checkpoint, given: Any) -> schema.GenerationConfig:
    """`given`, or the checkpoint's own settings with the keys that are given alone."""
    changes = schema.given_keys(given)
    return given if changes is None else changed_generation(stored_generation(checkpoint), changes)


def data_of(trained_on: Any, given: Any) -> Any:
    """`given`, or the data that a model was trained on with the keys that are given alone.

    ConfigError for a key that such data does not have.
    """
    changes = schema.given_keys(given)
    return given if changes is None else changed(trained_on, changes, f"data={trained_on.kind}")


def changed_generation(
    generation: schema.GenerationConfig, options: Mapping[str, Any]
) -> schema.GenerationConfig:
    """The settings with `options`, of which beam_size alone asks for beam search."""
    if "beam_size" in options:
        options = {"method": "beam", **options}
    return changed(generation, options, "generation")


def changed(settings: Settings, options: Mapping[str, Any], name: str) -> Settings:
    """The settings with `options`, checked; ConfigError names the option that is wrong."""
    known = [one.name for one in fields(settings) if one.name != "kind"]  # type: ignore[arg-type]
    for key in options:
        one_of(f"an option of {name}", key, known)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(settings), dict(options))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    return schema.parse(merged)  # type: ignore[arg-type]
