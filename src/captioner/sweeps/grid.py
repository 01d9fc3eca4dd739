"""Every combination of the values on the command line."""

from collections.abc import Mapping, Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from captioner.errors import ConfigError


def split_overrides(
    params: Mapping[str, str] | None, arguments: Sequence[str]
) -> tuple[list[str], list[Override]]:
    """The overrides that all runs share, and those that are swept.

    `params` are the swept keys of a configuration; a key of the command line goes before them.
    """
    from_config = [f"{key}={value}" for key, value in (params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*from_config, *arguments])
    last = {one.get_key_element(): one for one in parsed}
    fixed = [str(one.input_line) for one in last.values() if not one.is_sweep_override()]
    return fixed, [one for one in last.values() if one.is_sweep_override()]


def combinations(swept: Sequence[Override]) -> list[tuple[str, ...]]:
    """The overrides of each run; ConfigError for a range of real numbers, which has no end."""
    choices = []
    for one in swept:
        if not one.is_discrete_sweep():
            raise ConfigError(
                f"{one.input_line}: a grid needs values, not an interval; list them, or take "
                "hydra/sweeper=optuna"
            )
        choices.append([f"{one.get_key_element()}={v}" for v in one.sweep_string_iterator()])
    return list(product(*choices))
