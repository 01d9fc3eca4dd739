"""--help of every command: what it is for, worked examples, the choices of its groups, all keys.

Hydra's own help takes seconds for a list of all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from captioner.commands.table import as_typed
from captioner.config import GROUPS

ENDING = """\
--cfg job prints the configuration and stops; --help this text; -m runs a sweep (train.py).
Tab completion in bash: eval "$(python scripts/{name}.py -sc install=bash)"
"""


def help_text(name: str, overrides: Sequence[str], *, about: str, configs: Path) -> str:
    """The help of a command, its keys as `overrides` leave them.

    `about` is the first line; the examples are the comments at the head of configs/<name>.yaml.
    Hydra's errors for overrides that are wrong.
    """
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(configs)):
        config = hydra.compose(name, overrides=list(overrides))
    text = (configs / f"{name}.yaml").read_text("utf-8")
    head = takewhile(lambda line: line.startswith("#"), text.splitlines())
    parts = [about, "", *(line[1:].rstrip() for line in head), ""]
    groups = [f"{group}: {', '.join(choices(configs / group))}" for group in _groups(config)]
    if groups:
        parts += ["== Groups: group=choice ==", *groups, ""]
    parts += ["== Keys and their defaults: key=value ==", OmegaConf.to_yaml(config, resolve=False)]
    return as_typed("\n".join([*parts, ENDING.format(name=name)]))


def choices(folder: Path) -> list[str]:
    """What a group of the configuration can be."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _groups(config: DictConfig) -> list[str]:
    """The groups that a command has; an experiment, which chooses of all, is no key."""
    experiment = ["experiment"] if "trainer" in config else []
    return sorted([*(group for group in GROUPS if group in config), *experiment])
