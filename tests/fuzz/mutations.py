"""Hostile forms of what is valid, by hypothesis: of bytes, of JSON, of a checkpoint's content."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
DEEP = 100_000
# JSON texts that stand in the place of a value.
RAW = (
    "null", "true", "-1", "0", "1.5", '"x"', '""', "[]", "{}", "[[1]]", '{"a": 1}', "1e999", "NaN",
    "-Infinity", "9" * 400, "9" * 5000, '"\\ud800"', '"\\u0000"', '"a\\nb"', '{"a": 1, "a": 2}',
    "[" * DEEP + "]" * DEEP, "100000", "-9223372036854775809", "tru",
)  # fmt: skip
# What stands in the place of a part of a checkpoint.
ODD: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: -1, lambda: 10**30, lambda: float("nan"), lambda: "x",
    lambda: "\ud800", lambda: [], lambda: {}, lambda: {5: 5}, lambda: (1, 2), lambda: torch.ones(3),
    lambda: torch.zeros(()), lambda: torch.eye(3).to_sparse(), lambda: torch.ones(1).expand(10**9),
    lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), lambda: b"bytes",
    lambda: torch.ones(2, device="meta"), lambda: torch.full((4,), float("inf")),
    lambda: torch.ones(2, dtype=torch.complex64), lambda: {"a": [{"b": None}]},
)  # fmt: skip


@st.composite
def changed_bytes(draw: Draw, data: bytes) -> bytes:
    """The same with a bit turned, a part lost, doubled, zeroed or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        size = draw(st.integers(1, 40))
        how = draw(st.sampled_from(("bit", "cut", "lose", "double", "zero", "insert")))
        if how == "bit" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del changed[at:]
        elif how == "lose":
            del changed[at : at + size]
        elif how == "double":
            changed[at:at] = changed[at : at + size]
        elif how == "zero":
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        else:
            changed[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(changed)


@st.composite
def changed_json(draw: Draw, text: str) -> str:
    """The same with a value replaced, lost, doubled or renamed, at any depth."""
    value = {"": json.loads(text)}  # so that the whole has a place, too
    raw = []
    for number in range(draw(st.integers(1, 2))):
        holder, key = draw(st.sampled_from([*_places(value)]))
        how = draw(st.sampled_from(("replace", "replace", "lose", "double", "rename")))
        if how == "replace":
            raw.append(draw(st.sampled_from(RAW)))
            holder[key] = f"@{number}@"
        elif how == "lose" and holder is not value:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif holder is not value:
            holder[draw(st.sampled_from(("", "x", "\n")))] = holder.pop(key)
    changed = json.dumps(value[""])
    for number, one in enumerate(raw):
        changed = changed.replace(f'"@{number}@"', one)
    return changed


@st.composite
def changed_content(draw: Draw, content: Any) -> Any:
    """A copy of nested dicts and lists in which a part is replaced, lost or renamed."""
    value = {"": copy.deepcopy(content)}
    for _ in range(draw(st.integers(1, 2))):
        holder, key = draw(st.sampled_from([*_places(value)]))
        how = draw(st.sampled_from(("replace", "replace", "lose", "rename")))
        if how == "replace":
            holder[key] = draw(st.sampled_from(ODD))()
        elif holder is value:
            continue
        elif how == "lose":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(("", "x", 7)))] = holder.pop(key)
    return value[""]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list inside, with every key or index that it has."""
    if isinstance(value, dict | list):
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
