"""What a key may be, said beside its default: `epochs: int = setting(10, COUNT)`.

Every number, choice and path of the schemas has such a rule, which a test sees to. None, where a
key's type allows it, means switched off and obeys every rule.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from captioner.checks import FINITE, LARGE, in_range, one_of
from captioner.errors import ConfigError


class Rule(Protocol):
    """What a value may be."""

    def check(self, key: str, value: Any) -> None:
        """ConfigError naming the key unless the value obeys the rule."""


@dataclass(frozen=True)
class Range:
    """Finite numbers from low to high, both included; with `above` without low."""

    low: float
    high: float = FINITE
    above: bool = False

    def check(self, key: str, value: Any) -> None:
        """ConfigError naming the key and the bounds."""
        in_range(key, value, self.low, self.high, above=self.above)


@dataclass(frozen=True)
class Choice:
    """One of several texts."""

    options: tuple[str, ...]

    def check(self, key: str, value: Any) -> None:
        """ConfigError naming the key and the nearest option."""
        if value is not None:
            one_of(key, value, self.options)


@dataclass(frozen=True, eq=False)
class Text:
    """A text: of a file or folder, or one that is `free` to be anything, empty too."""

    free: bool = False

    def check(self, key: str, value: Any) -> None:
        """ConfigError naming the key."""
        if value is None or (self.free and isinstance(value, str)):
            return
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ConfigError(f"{key} must be the name of a file or folder, got {value!r}")


COUNT = Range(1, LARGE)
COUNT_OR_NONE = Range(0, LARGE)
SEED = Range(0, 2**63 - 1)  # torch's generators take no more, numpy's nothing below 0
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, above=True)
PROBABILITY = Range(0, 1, above=True)
RATE = Range(0, 0.999)  # of dropout: at 1 nothing would be left
SHARE = Range(0, 1)
PROCESSES = Range(0, 256)
THREADS = Range(1, 1024)
PATH = Text()
OUTPUT = Text()  # a file or folder that a command writes
TEXT = Text(free=True)


def setting(default: Any, rule: Rule) -> Any:
    """A field of a `Checked` schema; of a list every element obeys the rule, and there is one."""
    if isinstance(default, list):
        return field(default_factory=lambda: [*default], metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


@dataclass
class Checked:
    """A schema whose fields are held to their rules; errors name them `group`.key."""

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            rule = item.metadata.get("rule")
            if rule is None:
                continue
            value, key = getattr(self, item.name), f"{self.group}.{item.name}".lstrip(".")
            if isinstance(value, list | tuple) and not value:
                raise ConfigError(f"{key} must name one or more, got an empty list")
            for one in value if isinstance(value, list | tuple) else [value]:
                rule.check(key, one)
