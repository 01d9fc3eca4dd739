"""What is read back from a file, checked against the type that it should have.

The types are Python's own annotations: dataclasses (made), TypedDicts (other keys are let through),
lists, tuples, dicts with text as keys, unions, literals, `Annotated` numbers in a range, and `Json`
for whatever people may have written.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from captioner.errors import CaptionerError, DataError

Read = Callable[[Any], Any]
# Whole numbers that every library can take: what is read as an int lies in here.
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_DEEP = 50  # as deep as a `Json` may be nested: whoever walks through it can


class Within(NamedTuple):
    """Of an `Annotated` number: its bounds, both allowed."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        bounds = f"at least {self.low:,}", f"from {self.low:,} to {self.high:,}"
        return bounds[self.high < math.inf]


Count = Annotated[int, Within(0)]
Size = Annotated[int, Within(1)]


class _JsonType:
    """Stands for any JSON value whose numbers and depth are within bounds."""


Json = Annotated[Any, _JsonType()]
Figure = Annotated[float, "NaN and infinity too"]  # what was measured, however it came out


class _Wrong(Exception):
    """What is wrong, and where inside the value; each level adds its own step to the place."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def inside(self, step: str) -> "_Wrong":
        """The same seen from outside: `step` is a key or an index in brackets."""
        joint = "." if self.path and not self.path.startswith("[") else ""
        step = step if step.isprintable() and len(step) < 60 else describe(step)
        return _Wrong(self.message, f"{step}{joint}{self.path}")


def restore(kind: Any, value: Any, place: str, *, error: type[CaptionerError] = DataError) -> Any:
    """`value` as the annotation `kind`; an `error` names `place`, the part that is wrong, what it
    must be and what was found. Lists and dicts are given back as they are, unless they hold
    dataclasses."""
    try:
        return _reader(kind)(value)
    except _Wrong as wrong:
        where = f"{place}: {wrong.path}" if wrong.path else place
        raise error(f"{where} {wrong.message}") from None


def describe(value: Any) -> str:
    """What a value is, in a few words on one line."""
    if isinstance(value, dict):
        keys = [describe(key) for key in list(value)[:6]]
        return f"an object with the keys {', '.join(keys) or '(none)'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    plain = value is None or isinstance(value, str | int | float)
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _must_be(expected: str, found: Any) -> _Wrong:
    return _Wrong(f"must be {expected}, found {describe(found)}")


@cache
def _reader(kind: Any) -> Read:
    """The function that checks and makes a value of a type."""
    if kind in _LEAVES:
        return _leaf(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, *bounds = arguments
        return _read_json if isinstance(bounds[0], _JsonType) else _bounded(base, bounds[0])
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is Literal:
        return _literal(arguments)
    if origin in (list, Sequence) or (origin is tuple and arguments[-1] is ...):
        return _list(arguments[0])
    if origin is tuple:
        return _tuple(arguments)
    if origin in (dict, Mapping):
        return _dict(arguments[1])
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    if typing.is_typeddict(kind):
        return _typed_dict(kind)
    return _instance(kind)


# -- single values --------------------------------------------------------------------------------


class _Leaf(NamedTuple):
    """A type of single values: its name, Python's types, and whether a list of them is allowed."""

    name: str
    types: frozenset[type]
    fine: Callable[[Sequence[Any]], bool]


def _whole(values: Sequence[Any]) -> bool:
    return not values or (min(values) >= _LOWEST and max(values) <= _HIGHEST)


def _numbers(values: Sequence[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # a whole number that no float holds
        return False


_LEAVES: dict[Any, _Leaf] = {
    bool: _Leaf("true or false", frozenset({bool}), lambda _: True),
    int: _Leaf("a whole number", frozenset({int}), _whole),
    float: _Leaf("a finite number", frozenset({int, float}), _numbers),
    str: _Leaf("text", frozenset({str}), lambda _: True),
    Figure: _Leaf("a number", frozenset({int, float}), lambda _: True),
    type(None): _Leaf("null", frozenset({type(None)}), lambda _: True),
}


def _all_fine(leaf: _Leaf, values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= leaf.types and leaf.fine(values)


def _leaf(kind: Any) -> Read:
    leaf = _LEAVES[kind]

    def read(value: Any) -> Any:
        if not _all_fine(leaf, (value,)):
            raise _must_be(leaf.name, value)
        return value

    return read


def _bounded(base: Any, bounds: Within) -> Read:
    inner, name = _reader(base), _LEAVES[base].name

    def read(value: Any) -> Any:
        if not bounds.low <= inner(value) <= bounds.high:
            raise _must_be(f"{name}, {bounds}", value)
        return value

    return read


def _literal(choices: Sequence[Any]) -> Read:
    def read(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in choices):
            raise _must_be(f"one of {', '.join(map(str, choices))}", value)
        return value

    return read


def _instance(kind: Any) -> Read:
    def read(value: Any) -> Any:
        if kind is not Any and not isinstance(value, kind):
            raise _must_be(f"a {kind.__name__}", value)
        return value

    return read


def _union(kinds: Sequence[Any]) -> Read:
    readers = [_reader(kind) for kind in kinds]

    def read(value: Any) -> Any:
        expected = []
        for one in readers:
            try:
                return one(value)
            except _Wrong as wrong:
                if wrong.path or not wrong.message.startswith("must be "):
                    raise  # of this kind, but for a part
                expected.append(wrong.message.removeprefix("must be ").split(", found ")[0])
        raise _must_be(" or ".join(expected), value)

    return read


# -- lists, objects -------------------------------------------------------------------------------


def _list(kind: Any) -> Read:
    inner, leaf = _reader(kind), _LEAVES.get(kind)
    columns = _columns(kind)

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise _must_be("a list", value)
        # Without a look at each of what may be millions.
        if (leaf and _all_fine(leaf, value)) or (columns and _all_rows_fine(columns, value)):
            return value
        made = []
        try:
            for one in value:
                made.append(inner(one))
        except _Wrong as wrong:
            raise wrong.inside(f"[{len(made)}]") from None
        return made

    return read


def _columns(kind: Any) -> dict[str, _Leaf]:
    """The keys of a TypedDict that must have them all, and only single values; else none."""
    hints = typing.get_type_hints(kind) if typing.is_typeddict(kind) else {}
    simple = hints and set(hints) == kind.__required_keys__ and _LEAVES.keys() >= {*hints.values()}
    return {key: _LEAVES[one] for key, one in hints.items()} if simple else {}


def _all_rows_fine(columns: Mapping[str, _Leaf], rows: Sequence[Any]) -> bool:
    if not set(map(type, rows)) <= {dict}:
        return False
    try:
        return all(_all_fine(leaf, [*map(itemgetter(key), rows)]) for key, leaf in columns.items())
    except KeyError:
        return False


def _tuple(kinds: Sequence[Any]) -> Read:
    readers = [_reader(kind) for kind in kinds]

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise _must_be(f"a list of {len(readers)}", value)
        made: list[Any] = []
        try:
            for one, inner in zip(value, readers, strict=True):
                made.append(inner(one))
        except _Wrong as wrong:
            raise wrong.inside(f"[{len(made)}]") from None
        return tuple(made)

    return read


def _dict(kind: Any) -> Read:
    inner, leaf = _reader(kind), _LEAVES.get(kind)

    def read(value: Any) -> Any:
        _check_object(value)
        if leaf and _all_fine(leaf, [*value.values()]):
            return value
        return {key: _read_part(inner, one, key) for key, one in value.items()}

    return read


def _dataclass(kind: Any) -> Read:
    hints = typing.get_type_hints(kind, include_extras=True)
    own = [one for one in dataclasses.fields(kind) if one.init]
    readers = {one.name: _reader(hints[one.name]) for one in own}
    needed = {one.name for one in own if one.default is one.default_factory is dataclasses.MISSING}

    def read(value: Any) -> Any:
        _check_object(value, needed)
        for key in value.keys() - readers.keys():
            raise _Wrong(f"has the unknown key {describe(key)}, expected {', '.join(readers)}")
        parts = {key: _read_part(readers[key], one, key) for key, one in value.items()}
        try:
            return kind(**parts)
        except (ValueError, CaptionerError) as error:  # what the class itself checks
            raise _Wrong(f"cannot be used: {error}") from error

    return read


def _typed_dict(kind: Any) -> Read:
    hints = typing.get_type_hints(kind, include_extras=True)
    readers = {key: _reader(one) for key, one in hints.items()}

    def read(value: Any) -> Any:
        _check_object(value, kind.__required_keys__)
        known = value.keys() & readers.keys()
        return {**value, **{key: _read_part(readers[key], value[key], key) for key in known}}

    return read


def _read_part(read: Read, value: Any, key: str) -> Any:
    try:
        return read(value)
    except _Wrong as wrong:
        raise wrong.inside(key) from None


def _check_object(value: Any, needed: typing.AbstractSet[str] = frozenset()) -> None:
    if not isinstance(value, dict):
        keys = f" with the keys {', '.join(sorted(needed))}" if needed else ""
        raise _must_be(f"an object{keys}", value)
    for key in value:
        if not isinstance(key, str):
            raise _Wrong(f"must have text as keys, found {describe(key)}")
    for key in sorted(needed - value.keys()):
        raise _Wrong(f"lacks {key!r}, found {describe(value)}")


def _read_json(value: Any, depth: int = 0) -> Any:
    if depth > _DEEP:
        raise _Wrong(f"is nested more than {_DEEP} deep")
    if isinstance(value, dict):
        _check_object(value)
        for key, one in value.items():
            _read_part(lambda inner: _read_json(inner, depth + 1), one, key)
    elif isinstance(value, list | tuple):
        for at, one in enumerate(value):
            _read_part(lambda inner: _read_json(inner, depth + 1), one, f"[{at}]")
    elif type(value) in (int, float):
        _leaf({int: int, float: float}[type(value)])(value)
    elif not isinstance(value, str | bool | None):
        raise _must_be("a value of JSON", value)
    return value
