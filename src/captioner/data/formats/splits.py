"""Splits drawn for data that has none: the same for a seed on every machine, whatever the order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

from captioner.errors import ConfigError, DataError

SPLIT_NAMES: tuple[str, ...] = ("train", "dev", "test")


def draw_splits(
    names: Iterable[str], *, fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Share the names out over the splits named in `fractions`.

    Names are ordered by a hash of seed and name, so neither the file's order nor the version of a
    random generator matters. A fraction of 0 leaves its split out. ConfigError when a fraction is
    negative or they do not add up to 1; DataError when there are too few names for each split.
    """
    _check_fractions(fractions)
    ordered = sorted(set(names), key=lambda name: _rank(seed, name))
    wanted = {split: fractions[split] for split in SPLIT_NAMES if fractions.get(split)}
    sizes = _sizes(len(ordered), wanted)
    drawn: dict[str, list[str]] = {}
    start = 0
    for split, size in sizes.items():
        # Sorted again, so that a listing of a split reads well.
        drawn[split] = sorted(ordered[start : start + size])
        start += size
    return drawn


def _check_fractions(fractions: Mapping[str, float]) -> None:
    unknown = [split for split in fractions if split not in SPLIT_NAMES]
    if unknown or not fractions:
        raise ConfigError(f"split fractions: found {list(fractions)}, expected {SPLIT_NAMES}")
    total = sum(fractions.values())
    if min(fractions.values()) < 0 or not math.isclose(total, 1, abs_tol=1e-6):
        raise ConfigError(
            f"split fractions must not be negative and must add up to 1, got {dict(fractions)} "
            f"(sum {total:g})"
        )


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _sizes(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole sizes that add up to `count`; what is left over goes to the largest remainders."""
    # The rounding keeps 8 * 0.125 and the like from falling just below a whole number.
    exact = {split: round(count * fraction, 6) for split, fraction in fractions.items()}
    sizes = {split: math.floor(size) for split, size in exact.items()}
    by_remainder = sorted(exact, key=lambda split: sizes[split] - exact[split])
    for split in by_remainder[: count - sum(sizes.values())]:
        sizes[split] += 1
    empty = [split for split, size in sizes.items() if size == 0]
    if empty:
        raise DataError(
            f"{count} pictures are too few to draw splits {dict(fractions)}: "
            f"{empty[0]!r} would be empty"
        )
    return sizes
