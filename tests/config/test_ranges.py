"""Every key says what it may be, and is held to it."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from captioner import config as schema
from captioner.config.ranges import Choice, Range, Text
from captioner.errors import ConfigError

KEYS = (schema.VocabularyConfig, schema.RnnConfig, schema.ReplicasConfig, schema.RewardConfig)
SCHEMAS = [
    *dict.fromkeys(one for group in schema.GROUPS.values() for one in group.values()),
    *schema.COMMANDS.values(),
    schema.GridSweepConfig,
    schema.StudySweepConfig,
    schema.ReplicasLauncherConfig,
    *KEYS,
]
# What has a check of its own.
APART = {"views", "_target_", "params", "stages", "overrides"}


def settings(kind: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a schema that take numbers or text, with their rules."""
    types = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if item.name not in APART and set(leaves(types[item.name])) & {int, float, str}:
            yield item.name, item.metadata.get("rule")


def leaves(kind: Any) -> Iterator[Any]:
    inner = typing.get_args(kind)
    if not inner:
        yield kind
    for one in inner:
        yield from leaves(one)


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_every_number_and_text_has_a_rule_that_its_default_obeys(kind: Any) -> None:
    assert [key for key, rule in settings(kind) if rule is None] == []
    for item in dataclasses.fields(kind):
        rule, default = item.metadata.get("rule"), item.default
        if rule is not None and default is not dataclasses.MISSING and default != "???":
            rule.check(item.name, default)


def refused(rule: Any) -> list[Any]:
    """Values that a rule does not allow."""
    if isinstance(rule, Range):
        numbers: list[Any] = [math.nan, math.inf, -math.inf, "text", [[1]], {}]
        numbers += [rule.low if rule.above else rule.low - 1] if rule.low > -1e300 else []
        return numbers + ([rule.high + 1, 10**400] if rule.high < 1e300 else [])
    if isinstance(rule, Choice):
        return ["", "nothing of the kind", 5]
    assert isinstance(rule, Text)
    return [5, [], {}] if rule.free else ["", " ", "a\0b", 5, {}]


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_a_value_that_cannot_be_is_refused_by_name(kind: Any) -> None:
    for key, rule in settings(kind):
        for value in refused(rule):
            given = object.__new__(kind)  # not made by __init__, which would check the defaults
            for item in dataclasses.fields(kind):
                setattr(given, item.name, None)
            setattr(given, key, value)
            with pytest.raises(ConfigError, match=key) as error:
                schema.Checked.__post_init__(given)
            assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [0, 1234, 2**63 - 1])
def test_every_seed_orders_batches(seed: int) -> None:
    from captioner.data.dataset import BatchOrder

    order = BatchOrder(10, batch_size=4, seed=seed)
    order.epoch = 3
    assert sorted(row for batch in order for row in batch) == list(range(10))
