"""How long the time steps of K models in one launch should take on an H200: nothing here measures.

Shapes: K models, B sequences, H hidden size.

What was measured of one model (results/gpu/h200-lstm-tiled.json) follows one number for each H: the
kernels of csrc/cuda/tiled.h take the same time for every tile of eight sequences that a group of
thread blocks computes, whatever B. How many tiles a group computes one after another is a matter of
the work partition, which `share_groups` repeats for bfloat16.

    python -m benchmarks.models_prediction    prints the table of docs/cuda.md
"""

from collections.abc import Sequence
from functools import cache
from statistics import median

import numpy as np

from benchmarks.captions import steps_of_sequences
from benchmarks.worker import ROOT
from captioner.files import read_json

RECORD = ROOT / "benchmarks" / "results" / "gpu" / "h200-lstm-tiled.json"
MULTIPROCESSORS = 132
TILE = 8  # sequences
UNITS = {256: 32, 512: 32, 1024: 16}  # of a thread block, by the largest H
COUNTS = (1, 2, 4, 8, 16, 32)


def share_groups(models: int, hidden_size: int, batch: int) -> tuple[int, int, int]:
    """Launches, models of a launch and groups of a model, as csrc/cuda/work_partition.cpp chooses
    them; ValueError beyond H 1024, of which it holds no model by tiles."""
    units = next((own for largest, own in UNITS.items() if hidden_size <= largest), None)
    if units is None:
        raise ValueError(f"hidden_size must be at most {max(UNITS)}, got {hidden_size}")
    resident = MULTIPROCESSORS // -(-hidden_size // units)
    launches = -(-models // resident)
    at_once = -(-models // launches)
    return launches, at_once, min(resident // at_once, -(-batch // TILE))


def tiles_in_turn(lengths: Sequence[int] | np.ndarray, groups: int) -> int:
    """Tiles that the group with most sequences computes one after another, over all time steps."""
    ordered = np.sort(np.asarray(lengths))[::-1]
    own = ordered[::groups]
    return sum(-(-int((own > t).sum()) // TILE) for t in range(int(ordered[0])))


@cache
def measured() -> dict[int, dict[int, float]]:
    """Microseconds a tile of forward and backward together, by H and B."""
    record, found = read_json(RECORD), dict[int, dict[int, float]]()
    for one in record["kernels"]:
        if one["dtype"] == "bfloat16" and one["algorithm"] == "persistent":
            batch, steps = one["B"], record["time_steps"][f"B {one['B']}"]
            taken = steps * (one["forward_step_us"] + one["backward_step_us"])
            _, _, groups = share_groups(1, one["H"], batch)
            tiles = tiles_in_turn(flickr8k_lengths(batch), groups)
            found.setdefault(one["H"], {})[batch] = taken / tiles
    return found


def microseconds_a_tile(hidden_size: int) -> float:
    """The median over the batches that were measured with the nearest H."""
    nearest = min(measured(), key=lambda one: abs(one - hidden_size))
    return median(measured()[nearest].values())


def flickr8k_lengths(batch: int) -> np.ndarray:
    """Time steps [B] of captions with Flickr8k's lengths."""
    return steps_of_sequences("flickr8k", batch, seed=0)


def expected_microseconds(models: int, hidden_size: int, batch: int) -> float:
    """All time steps of K models in one launch, or as few as hold them: forward and backward,
    kernels alone."""
    launches, _, groups = share_groups(models, hidden_size, batch)
    return (
        launches * tiles_in_turn(flickr8k_lengths(batch), groups) * microseconds_a_tile(hidden_size)
    )


def table() -> list[str]:
    """Rows of docs/cuda.md: by H and B, microseconds, times one model and share of K in turn."""
    rows = ["| H, B | " + " | ".join(f"K {count}" for count in COUNTS) + " |"]
    rows.append("|---" * (len(COUNTS) + 1) + "|")
    for hidden_size in (256, 512):
        for batch in (64, 128):
            one = expected_microseconds(1, hidden_size, batch)
            cells = []
            for count in COUNTS:
                taken = expected_microseconds(count, hidden_size, batch)
                cells.append(f"{taken:,.0f}, {taken / one:.1f}, {taken / one / count:.2f}")
            rows.append(f"| {hidden_size}, {batch} | " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    for hidden_size in measured():
        print(f"H {hidden_size}: {microseconds_a_tile(hidden_size):.1f} microseconds a tile")
    print("\n".join(table()))
