"""Checks of configuration values: each error names the key, the value and the allowed values."""

import difflib
from collections.abc import Sequence

from captioner.errors import ConfigError


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """ConfigError naming the nearest choice unless `value` is one of them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key} must be one of {', '.join(choices)}, got {value!r}{hint}")


def in_range(key: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """ConfigError unless low <= value <= high (None is let through: it means switched off)."""
    if value is not None and not low <= value <= high:
        bounds = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ConfigError(f"{key} must be {bounds}, got {value:g}")


def each_in_range(
    group: str, config: object, keys: str, low: float, high: float = float("inf")
) -> None:
    """`in_range` for each of the `keys`, separated by blanks, of a group of the configuration."""
    for key in keys.split():
        in_range(f"{group}.{key}", getattr(config, key), low, high)


def positive(key: str, value: float | None) -> None:
    """ConfigError unless value > 0 (None is let through)."""
    if value is not None and not value > 0:
        raise ConfigError(f"{key} must be greater than 0, got {value:g}")
