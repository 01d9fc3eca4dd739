"""Which way the fused LSTM goes through the steps on a CUDA device: plain or persistent.

"plain" launches a product and a kernel a step and takes any shape and type; "persistent" keeps
weight_hh on the chip from the first step to the last, where it fits (csrc/cuda/passes.h). Which is
the faster one is not guessed: lstm_paths.json holds what `make gpu-check` has measured, as

    {"NVIDIA H100 80GB HBM3": {"bfloat16": [
        {"hidden_size": 512, "batch_size": 64, "plain_ms": 3.1, "persistent_ms": 0.9}, ...]}}

with the times of forward and backward together. A device, type or size without a record goes plain.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from captioner.errors import ConfigError

Cell = Mapping[str, float]
Table = Mapping[str, Mapping[str, Sequence[Cell]]]
log = logging.getLogger(__name__)


def goes_persistent(chosen: str, weight_hh: Tensor, batch: int, *, capacity: bool) -> bool:
    """Whether a call of the backend `chosen` with weight_hh [4H, H] on a GPU goes persistent.

    In the capacity form nothing else can. ConfigError where "persistent" is asked for in float32
    while torch's products may not be TF32, in which the tensor cores would multiply; the operator
    itself refuses what does not fit the device.
    """
    if chosen == "persistent" or (capacity and chosen == "fused"):
        if _needs_tf32(weight_hh):
            raise ConfigError(
                "the persistent LSTM multiplies float32 as TF32, which torch does not allow now: "
                'torch.set_float32_matmul_precision("high") does, or take bfloat16'
            )
        return True
    if chosen == "plain" or torch.compiler.is_compiling():  # which cannot look a device up
        return False
    if _needs_tf32(weight_hh):
        return False
    device = torch.cuda.get_device_name(weight_hh.device)
    faster, why = is_faster(_table(), device, weight_hh.dtype, weight_hh.shape[1], batch)
    persistent = faster and bool(torch.ops.captioner.lstm_persistent_fits(weight_hh, batch))
    _say("persistent" if persistent else "plain", why)
    return persistent


def _needs_tf32(weight: Tensor) -> bool:
    """Whether the tensor cores would multiply more roughly than torch's switch allows."""
    return weight.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"


def is_faster(
    table: Table, device: str, dtype: torch.dtype, hidden_size: int, batch_size: int
) -> tuple[bool, str]:
    """Whether the table's nearest cell has persistent ahead, and why, in words.

    Near is meant on logarithmic scales; beyond the smallest and largest sizes that were measured
    nothing is concluded.
    """
    name = str(dtype).removeprefix("torch.")
    cells = table.get(device, {}).get(name, [])
    sizes = {"hidden_size": hidden_size, "batch_size": batch_size}
    if not cells:
        return False, f"nothing was measured on {device} in {name}"
    for key, size in sizes.items():
        low, high = min(cell[key] for cell in cells), max(cell[key] for cell in cells)
        if not low <= size <= high:
            return False, f"{key} {size} is beyond what was measured, {low} to {high}"
    nearest = min(cells, key=lambda cell: sum(math.log(cell[k] / n) ** 2 for k, n in sizes.items()))
    plain, persistent = nearest["plain_ms"], nearest["persistent_ms"]
    words = f"plain {plain:.3g} ms, persistent {persistent:.3g} ms measured nearby"
    return persistent < plain, words


def check_table(table: Any) -> Table:
    """`table` if it has the form above, else ConfigError with what is wrong."""
    keys = {"hidden_size", "batch_size", "plain_ms", "persistent_ms"}
    for device, types in table.items():
        for name, cells in types.items():
            for cell in cells:
                if set(cell) != keys or min(cell.values()) <= 0:
                    raise ConfigError(
                        f"lstm_paths.json, {device}, {name}: a cell must have positive "
                        f"{', '.join(sorted(keys))}, got {cell}"
                    )
    found: Table = table
    return found


@cache
def _table() -> Table:
    text = files("captioner.ops").joinpath("lstm_paths.json").read_text(encoding="utf-8")
    return check_table(json.loads(text))


@cache
def _say(path: str, why: str) -> None:
    log.info("LSTM on CUDA goes %s (%s)", path, why)
