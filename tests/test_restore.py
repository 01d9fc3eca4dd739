"""What is read back is checked against a type; a message names the part, what it must be and is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pytest

from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.restore import Count, Figure, Json, Size, describe, restore


@dataclass(frozen=True)
class Word:
    text: str
    probability: float


@dataclass(frozen=True)
class Caption:
    words: Sequence[Word]
    state: Literal["draft", "final"] = "draft"
    place: tuple[int, float] | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.words) > 3:
            raise ConfigError("more than three words")


class Row(TypedDict):
    id: int
    name: str


class Table(TypedDict, total=False):
    rows: list[Row]
    size: Size


def test_dataclasses_are_made_and_defaults_taken() -> None:
    found = restore(Caption, {"words": [{"text": "a", "probability": 1}], "place": [2, 0.5]}, "x")
    assert found == Caption([Word("a", 1)], place=(2, 0.5))


def test_other_keys_of_a_typed_dict_are_let_through() -> None:
    value = {"rows": [{"id": 1, "name": "a", "more": [None]}], "other": {"x": 1}}
    assert restore(Table, value, "x") == value


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, True, "x must be a whole number, found True"),
        (int, 2**64, "x must be a whole number, found a number of 65 bits"),
        (int, 1.0, "x must be a whole number, found 1.0"),
        (float, float("nan"), "x must be a finite number, found nan"),
        (float, 10**400, "x must be a finite number, found a number of 1329 bits"),
        (list[float], [0.0, 1e999], r"x: \[1\] must be a finite number, found inf"),
        (Figure, "1", "x must be a number, found '1'"),
        (Count, -1, "x must be a whole number, at least 0, found -1"),
        (str | None, 5, "x must be text or null, found 5"),
        (int | str, [], "x must be a whole number or text, found a list of 0"),
        (list[int], {"a": 1}, "x must be a list, found an object with the keys 'a'"),
        (tuple[int, int], [1], "x must be a list of 2, found a list of 1"),
        (dict[str, int], {1: 1}, "x must have text as keys, found 1"),
        (dict[str, int], {"a\nb": None}, r"x: 'a\\nb' must be a whole number, found None"),
        (Table, {"rows": [{"id": 1, "name": "a"}, {"id": 2}]}, r"x: rows\[1\] lacks 'name', found"),
        (Table, {"rows": [{"id": "1", "name": "a"}]}, r"x: rows\[0\]\.id must be a whole number"),
        (Table, {"rows": [7]}, r"x: rows\[0\] must be an object with the keys id, name, found 7"),
        (Table, {"size": 0}, "x: size must be a whole number, at least 1, found 0"),
        (Caption, [], "x must be an object with the keys words, found a list of 0"),
        (Caption, {"words": [], "word": 1}, "x has the unknown key 'word', expected words, state"),
        (Caption, {"words": [{"text": "a"}]}, r"x: words\[0\] lacks 'probability', found"),
        (
            Caption,
            {"words": [{"text": 5, "probability": 1}]},
            r"x: words\[0\]\.text must be text, found 5",
        ),
        (Caption, {"words": [], "state": "last"}, "x: state must be one of draft, final, found"),
        (
            Caption,
            {"words": 4 * [{"text": "a", "probability": 1}]},
            "x cannot be used: more than three words",
        ),
        (Json, {"a": [1, {"b": {5}}]}, r"x: a\[1\]\.b must be a value of JSON, found set"),
        (Json, {"a": 10**30}, "x: a must be a whole number, found a number of 100 bits"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        restore(kind, value, "x")


def test_deep_values_are_refused() -> None:
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CheckpointError, match=r"is nested more than 50 deep$"):
        restore(Json, deep, "x", error=CheckpointError)
    while deep:  # not by the recursion of its own end
        deep = deep.pop()


def test_what_is_found_fits_on_a_line() -> None:
    for value in ("a\n" * 500, list(range(500)), dict.fromkeys(map(str, range(99))), 10**5000, {5}):
        assert len(describe(value)) <= 80 and "\n" not in describe(value)
