"""What K models in one launch are expected to take on an H200, from what one was measured to."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models_prediction import (
    COUNTS,
    expected_microseconds,
    measured,
    microseconds_a_tile,
    share_groups,
    table,
    tiles_in_turn,
)

DOCS = Path(__file__).parents[2] / "docs" / "cuda.md"


@pytest.mark.parametrize(
    ("lengths", "groups", "tiles"),
    [
        ([3, 1], 1, 3),
        ([1] * 9, 1, 2),  # nine sequences are two tiles
        ([1] * 9, 2, 1),
        ([2, 2, 1, 5], 2, 5),  # the group with the longest: 5 and 2
        ([1] * 16 + [2] * 8, 1, 4),
    ],
)
def test_the_tiles_of_a_group_follow_one_another(
    lengths: list[int], groups: int, tiles: int
) -> None:
    assert tiles_in_turn(lengths, groups) == tiles


def test_every_measured_time_is_near_the_law() -> None:
    """Of one number for each H: the time of a tile, at B 64 to 1024."""
    assert {hidden: [*found] for hidden, found in measured().items()} == {
        512: [64, 128, 256, 1024],
        256: [64, 256],
        1024: [64, 256],
    }
    for hidden, found in measured().items():
        law = microseconds_a_tile(hidden)
        assert all(taken == pytest.approx(law, rel=0.03) for taken in found.values()), found


def test_one_launch_never_takes_longer_than_one_after_another() -> None:
    for hidden in (128, 256, 512, 1024):
        for batch in (16, 64, 128):
            one = expected_microseconds(1, hidden, batch)
            for count in COUNTS:
                assert one <= expected_microseconds(count, hidden, batch) <= count * one
    with pytest.raises(ValueError, match="hidden_size must be at most 1024, got 1032"):
        share_groups(1, 1032, 64)


def test_the_documentation_has_the_expected_times() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for hidden in measured():
        assert f"{microseconds_a_tile(hidden):.1f} us at H {hidden}" in text
    for row in table():
        assert row in text
