"""Names grouped into splits: as a data set lists them, or drawn, the same for a seed everywhere."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from captioner.errors import ConfigError, DataError

SPLIT_NAMES: tuple[str, ...] = ("train", "dev", "test")


def check_image_root(root: Path, source: Path | str) -> None:
    """DataError unless there is a folder `root` for the images that the file `source` names."""
    if not root.is_dir():
        raise DataError(f"there is no folder of images {root} for {source}")


def draw_splits(
    names: Iterable[str], *, fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Distribute the names, ordered by a hash of seed and name, over the splits in `fractions`.

    A fraction of 0 leaves its split out. ConfigError for fractions that are negative or do not add
    up to 1; DataError when there are too few names for each split.
    """
    _check_fractions(fractions)
    ordered = sorted(set(names), key=lambda n: hashlib.sha256(f"{seed}/{n}".encode()).digest())
    wanted = {split: fractions[split] for split in SPLIT_NAMES if fractions.get(split)}
    drawn: dict[str, list[str]] = {}
    start = 0
    for split, size in _sizes(len(ordered), wanted).items():
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
            f"{count} images are too few to draw splits {dict(fractions)}: "
            f"{empty[0]!r} would be empty"
        )
    return sizes
