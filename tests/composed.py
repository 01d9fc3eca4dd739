"""Configurations for tests of what is done with them: Hydra chooses the same groups once only.

Composing takes 0.2 s of processor time, which hundreds of tests would pay. How commands compose is
tested in tests/config and tests/commands.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from captioner.commands import cli
from captioner.config import GROUPS, parse
from captioner.errors import ConfigError

CHOOSES = re.compile(rf"[^\w.]|({'|'.join(GROUPS)}|experiment)=")


@functools.cache
def chosen(name: str, choices: tuple[str, ...], configs: Path = cli.CONFIGS) -> DictConfig:
    """A command's configuration as Hydra composes it with these overrides; not to be changed."""
    cli.register_schemas()
    cli.register_resolver()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(configs.resolve())):
        config = hydra.compose(name, overrides=list(choices))
    OmegaConf.set_struct(config, True)
    return config


def changed(config: DictConfig, overrides: Iterable[str]) -> Any:
    """A composed configuration with other values, which Hydra sets as those of a command line."""
    config = copy.deepcopy(config)
    ConfigLoaderImpl._apply_overrides_to_config([*map(_override, overrides)], config)
    return parse(config)


@functools.lru_cache(maxsize=4096)
def _override(text: str) -> Override:
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


def compose_config(name: str, overrides: Sequence[str] = (), *, configs: Path = cli.CONFIGS) -> Any:
    """As `cli.compose_config`, which is asked where Hydra finds something wrong."""
    choices = tuple(one for one in overrides if CHOOSES.match(one))
    try:
        values = [one for one in overrides if one not in choices]
        return changed(chosen(name, choices, configs), values)
    except ConfigError:
        raise
    except Exception:
        return cli.compose_config(name, overrides, configs=configs)
