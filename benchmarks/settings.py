"""What all suites share of their settings. Needs nothing that a bare GPU machine lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch

from captioner.checks import in_range, one_of, positive
from captioner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a suite is to measure; data_root: Flickr8k's folder, None draws captions like its own."""

    repeats: int
    device: torch.device
    seed: int = 0
    data_root: str | None = None

    @property
    def data(self) -> str:
        """Where the captions come from, for a record's settings."""
        return "synthetic" if self.data_root is None else "flickr8k"


def setting(default: Any, **rules: Any) -> Any:
    """A field of SuiteSettings. rules: choices, a tuple; or least, of a number."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass
class SuiteSettings:
    """Checks every field by its rules: integers are at least 1 unless `least` is given, other
    numbers positive; a list's elements are checked one by one, and one of numbers is not empty."""

    suite: ClassVar[str]

    def __post_init__(self) -> None:
        for item in fields(self):
            value, key = getattr(self, item.name), f"{self.suite}.{item.name}"
            if value == [] and "choices" not in item.metadata:
                raise ConfigError(f"{key} must name one or more")
            for one in value if isinstance(value, list) else [value]:
                if "choices" in item.metadata:
                    one_of(key, one, item.metadata["choices"])
                elif isinstance(one, float) and "least" not in item.metadata:
                    positive(key, one)
                elif isinstance(one, int | float) and not isinstance(one, bool):
                    in_range(key, one, item.metadata.get("least", 1))


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Within it, CUDA's matrix products of float32 are TF32, or exact: by default cuDNN rounds
    operands, cuBLAS does not."""
    parts: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
