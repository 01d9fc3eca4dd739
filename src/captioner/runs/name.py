"""Names of run folders: short, the same for the same settings, and safe on every file system."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from captioner.errors import DataError
from captioner.files import refuse_special
from captioner.runs.upgrade import first_name

_LONGEST_VALUE = 24
_LONGEST_NAME = 100
# Paths, and settings that change no result.
_LEFT_OUT = ("experiment", "name", "run_dir", "sweep_dir", "resume", "device", "threads")


def run_name(values: Mapping[str, str]) -> str:
    """The settings that differ, such as `hidden_size=256,lr=0.001`, in the order of the full keys.

    Each key is as short as it can be without two being the same. A name that had to be shortened
    or cleaned ends in a digest of the whole, so that no two runs ever share one.
    """
    # The order of version 0.1, so that a sweep that it began finds its folders.
    full = {key: values[key] for key in sorted(values, key=first_name)}
    exact = ",".join(f"{_shortest(key, full)}={value}" for key, value in full.items())
    name = ",".join(f"{_shortest(key, full)}={_safe(value)}" for key, value in full.items())
    if name != exact or len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(exact.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        name = f"{name[:_LONGEST_NAME]}~{digest}"
    return name or "run"


def _shortest(key: str, keys: Mapping[str, str]) -> str:
    """The last parts of a dotted key, as few as tell it from all others."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        short = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{short}") for other in keys) == 1:
            return short
    return key


def _safe(value: str) -> str:
    """A value without what shells, file systems and Hydra give a meaning; long ones cut."""
    if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", value) and len(value) > 10:
        value = f"{float(value):.4g}"
    cleaned = re.sub(r"[^\w.+-]+", "-", value, flags=re.ASCII)
    return cleaned[:_LONGEST_VALUE]


def values_of(overrides: Sequence[str]) -> dict[str, str]:
    """Hydra's overrides as values by key; equal numbers and booleans are written alike."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {one.key_or_group.lstrip("+"): _plain(one.value()) for one in parsed}


def _plain(value: object) -> str:
    value = getattr(value, "text", value)  # of a quoted string
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def suffix(overrides: Sequence[str]) -> str:
    """`_lr=0.01`, the end of a single run's folder name after its date; "" where nothing differs.

    Paths are left out.
    """
    values = values_of(overrides).items()
    given = {key: value for key, value in values if key not in _LEFT_OUT and "/" not in value}
    return f"_{run_name(given)}" if given else ""


def register_resolver() -> None:
    """Make `${differs:}` of a configuration the suffix of the command that is running, and let
    `${log_file:path}` refuse a path that logging could not open, or would wait for."""
    from hydra.core.hydra_config import HydraConfig

    def differs() -> str:
        return suffix(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ""

    OmegaConf.register_new_resolver("differs", differs, replace=True)
    OmegaConf.register_new_resolver("log_file", _log_file, replace=True)


def _log_file(name: str) -> str:
    path = Path(name)
    if path.exists():
        refuse_special(path)
        if path.is_dir() or not os.access(path, os.W_OK):
            raise DataError(f"{path} cannot be written: expected a file for the log")
    return name
