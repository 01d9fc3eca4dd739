"""What a command is told to write, looked at before it begins: nothing that is there is lost."""

import os
from pathlib import Path

from captioner.config import OutputConfig
from captioner.errors import ConfigError
from captioner.files import refuse_special


def refuse_overwriting(config: object) -> None:
    """ConfigError where an output of the command is there already, or could not be written;
    DataError where it is a pipe or a device.

    What is there may be one of the command's own inputs, or anybody's; `overwrite` allows it.
    """
    if not isinstance(config, OutputConfig):
        return
    for key, paths in config.outputs().items():
        for path in paths:
            if path.is_dir():
                raise ConfigError(f"{key}: {path} is a folder, and a file is to be written there")
            if path.exists():
                refuse_special(path)
            if os.path.lexists(path) and not config.overwrite:
                raise ConfigError(
                    f"{path} is there already, and {key}= would write over it; take another name, "
                    "or add overwrite=true"
                )
            _check_folder(key, path)


def _check_folder(key: str, path: Path) -> None:
    """ConfigError where the folder of an output can neither be written nor made."""
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir():
        raise ConfigError(f"{key}: {path} cannot be written, {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}: {path} cannot be written, {folder} may not be written in")
