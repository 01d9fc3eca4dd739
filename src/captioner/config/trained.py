"""What a command line changes of the settings that a checkpoint's run had.

A key that is None is the run's. `generation=beam` or `data=flickr8k` in place of single keys takes
nothing from the run.
"""

from dataclasses import fields, make_dataclass
from typing import Any

from captioner.config import data, model


def _changes(name: str, *schemas: type) -> type:
    """A schema with the keys of all of them; none has a default of its own."""
    types: dict[str, Any] = {one.name: one.type for schema in schemas for one in fields(schema)}
    return make_dataclass(name, [(k, x | None, None) for k, x in types.items() if k != "kind"])


DataChanges = _changes("DataChanges", *data.KINDS)
GenerationChanges = _changes("GenerationChanges", model.GenerationConfig)


def given_keys(changes: Any) -> dict[str, Any] | None:
    """The keys that were given, with their values; None for whole settings."""
    if changes is None:
        return {}
    if not isinstance(changes, DataChanges | GenerationChanges):
        return None
    return {key: value for key, value in vars(changes).items() if value is not None}
