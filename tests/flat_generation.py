"""The methods of generation with the constraints' fields among their own keyword arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from captioner import generation
from captioner.generation import Constraints, SamplingParams


def take(kind: type, arguments: dict[str, Any]) -> Any:
    """Build a dataclass of the arguments that are its fields, which are taken out."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: arguments.pop(name) for name in names & arguments.keys()})


def flat(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called with the fields of Constraints (and SamplingParams) one by one."""

    @functools.wraps(method)
    def call(*positional: Any, **arguments: Any) -> Any:
        constraints = take(Constraints, arguments)
        if method is generation.sample:
            arguments["params"] = take(SamplingParams, arguments)
        return method(*positional, constraints=constraints, **arguments)

    return call


beam_search, greedy, sample = map(
    flat, (generation.beam_search, generation.greedy, generation.sample)
)
