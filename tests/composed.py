"""Configurations for tests of what is done with them: Hydra chooses the same groups once only.

Composing takes 0.2 s of processor time, which hundreds of tests would pay. How commands compose is
tested in tests/config and tests/commands.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from captioner.commands import cli
from captioner.config import GROUPS, parse
from captioner.errors import ConfigError

CHOOSES = re.compile(rf"[^\w.]|({'|'.join(GROUPS)}|experiment)=")


@functools.cache
def _chosen(name: str, choices: tuple[str, ...], configs: Path) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(configs.resolve())):
        return hydra.compose(name, overrides=list(choices))


@functools.cache
def _override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def compose_config(name: str, overrides: Sequence[str] = (), *, configs: Path = cli.CONFIGS) -> Any:
    """As `cli.compose_config`, which is asked where Hydra finds something wrong."""
    choices = tuple(one for one in overrides if CHOOSES.match(one))
    try:
        cli.register_schemas()
        cli.register_resolver()
        config = copy.deepcopy(_chosen(name, choices, configs))
        for override in map(_override, (one for one in overrides if one not in choices)):
            OmegaConf.update(config, override.key_or_group, override.value())
        return parse(config)
    except ConfigError:
        raise
    except Exception:
        return cli.compose_config(name, overrides, configs=configs)
