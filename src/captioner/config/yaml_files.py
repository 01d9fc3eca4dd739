"""YAML files as Hydra reads them, a user's own too: one that is broken is named, with its line."""

import re
from collections import deque
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig

from captioner.errors import ConfigError
from captioner.files import read_text

_load = ConfigRepository.load_config
_read: deque[tuple[ConfigRepository, str]] = deque(maxlen=200)  # what was read last


def name_broken_files() -> None:
    """Let Hydra raise ConfigError, naming file and line, for a configuration that it cannot read.

    For what is no YAML, no UTF-8, no keys with values, or has no list of defaults as it must be.
    """
    ConfigRepository.load_config = _named_load  # type: ignore[method-assign, assignment]


def _named_load(repository: ConfigRepository, config_path: str) -> Any:
    try:
        found = _load(repository, config_path)
    except Exception as error:  # of many kinds: readers of YAML and of lists of defaults
        path = _file(repository, config_path)
        if path is None:
            raise
        text = read_text(path)  # DataError with the line of what is no UTF-8
        line, reason = _fault(error, text)
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{where}: {reason}") from error
    if found is not None and not isinstance(found.config, DictConfig):
        path = _file(repository, config_path)
        raise ConfigError(f"{path}, line 1: expected keys with values, found a list")
    _read.append((repository, config_path))
    return found


def where_named(choice: str) -> str:
    """File and line, among what was read last, that name a choice of a group; else nothing."""
    word = re.compile(rf"(?<![\w-]){re.escape(choice)}(?![\w-])")
    for path in filter(None, (_file(*one) for one in reversed(_read))):
        lines = read_text(path).splitlines()
        for number, line in enumerate(lines, start=1):
            if word.search(line.partition("#")[0]):
                return f"{path}, line {number}: "
    return ""


def _file(repository: ConfigRepository, config_path: str) -> Path | None:
    """Where a configuration stands; None for a schema."""
    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.scheme() != "file":
        return None
    return Path(source.path) / source._normalize_file_name(config_path)


def _fault(error: Exception, text: str) -> tuple[int, str]:
    """The line, where it is known (else 0), and what is wrong there."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return (mark.line + 1 if mark else 0), f"not YAML: {error.problem or error.context}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"not YAML: the character {error.character:#x} is not allowed"
    if isinstance(error, RecursionError):
        return 0, "lists and keys are nested too deep, or hold themselves"
    return 0, " ".join(str(error).split()) or type(error).__name__
