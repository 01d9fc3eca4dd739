"""Checks of configuration values: each error names the key, the value and the allowed values."""

import difflib
import math
import sys
from collections.abc import Sequence

from captioner.errors import ConfigError

FINITE = sys.float_info.max
LARGE = 2**31 - 1  # what a C int holds; a bound of no interest to a value that is too small


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """ConfigError naming the nearest choice unless `value` is one of them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key} must be one of {', '.join(choices)}, got {value!r}{hint}")


def in_range(
    key: str, value: float | None, low: float, high: float = FINITE, *, above: bool = False
) -> None:
    """ConfigError unless low <= value <= high, or with `above` low < value; None is let through: it
    means switched off."""
    if value is None:
        return
    number = isinstance(value, int | float)
    if number and low <= value <= high and not (above and value == low):
        return
    bounds = f"greater than {low:g}" if above else f"at least {low:g}"
    if low == -FINITE:
        bounds = "a finite number"
    if high != FINITE and not (high >= LARGE and number and value < low):
        most = _shown(high)
        bounds = f"{bounds} and at most {most}" if above else f"from {low:g} to {most}"
    finite = " and finite" if value == math.inf else ""
    raise ConfigError(f"{key} must be {bounds}{finite}, got {_shown(value)}")


def positive(key: str, value: float | None) -> None:
    """ConfigError unless value > 0 and finite (None is let through)."""
    in_range(key, value, 0, above=True)


def _shown(value: object) -> str:
    """A number in few characters, whatever its size; anything else in quotes."""
    if isinstance(value, int) and abs(value) < 10**20:
        return str(value)
    return f"{value:g}" if isinstance(value, float) else repr(value)[:40]
