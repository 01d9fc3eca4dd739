"""Names of version 0.1: stored configurations in today's names, and overrides that use the old."""

from collections.abc import Mapping
from typing import Any

GROUPS = {"decoder": "model", "decode": "generation"}
BACKENDS = {"clusters": "cluster"}  # of model.backend
_FIRST = {new: old for old, new in GROUPS.items()}


def upgrade(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, or stored scores with their protocol, in today's names.

    `tree` itself is not changed. TypeError or ValueError where it is no mapping.
    """
    today = {GROUPS.get(key, key): value for key, value in dict(tree).items()}
    model = today.get("model")
    backend = model.get("backend") if isinstance(model, Mapping) else None
    if isinstance(backend, str) and backend in BACKENDS:
        today["model"] = {**today["model"], "backend": BACKENDS[backend]}
    if isinstance(today.get("protocol"), Mapping):
        today["protocol"] = upgrade(today["protocol"])
    return today


def first_name(key: str) -> str:
    """The name that a dotted key had in version 0.1, by which its sweeps stored their values."""
    group, dot, rest = key.partition(".")
    return f"{_FIRST.get(group, group)}{dot}{rest}"


def old_name(override: str) -> str | None:
    """One sentence with the new name where an override, or a key alone, uses an old one."""
    key, _, value = override.lstrip("+~/").partition("=")
    group, dot, rest = key.partition(".")
    if group in GROUPS:
        return f"{key} is now called {GROUPS[group]}{dot}{rest}"
    if key == "model.backend":
        for old in set(value.split(",")) & set(BACKENDS):
            return f"model.backend={old} is now called model.backend={BACKENDS[old]}"
    return None
