"""Which way the fused LSTM goes through the steps on a CUDA device.

"plain" launches a product and a kernel a step and takes any shape and type. The others keep
weight_hh on the chip from the first step to the last, where it fits: "persistent" hands a step's
results on through the second-level cache, "clusters" (sm_90 on) through the blocks' shared memory
(csrc/cuda/passes.h). Which is the fastest is not guessed: lstm_paths.json holds what
`make gpu-check` has measured, as

    {"NVIDIA H100 80GB HBM3": {"bfloat16": [
        {"hidden_size": 512, "batch_size": 64,
         "milliseconds": {"plain": 3.1, "persistent": 0.9, "clusters": 0.8}}, ...]}}

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

PATHS = ("plain", "persistent", "clusters")  # the numbers that the operator knows them by
SIZES = ("hidden_size", "batch_size")
Table = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
log = logging.getLogger(__name__)


def choose_path(chosen: str, weight_hh: Tensor, batch: int, *, capacity: bool) -> int:
    """The number in PATHS by which a call of the backend `chosen` goes, weight_hh [4H, H].

    In the capacity form "fused" never goes plain, which could not take it. ConfigError where a path
    on the chip is asked for in float32 while torch's products may not be TF32, in which the tensor
    cores would multiply; the operator itself refuses what does not fit the device.
    """
    compiling = torch.compiler.is_compiling()  # which cannot look a device up
    path = chosen
    if chosen == "fused":
        path = "plain" if compiling or _needs_tf32(weight_hh) else _measured(weight_hh, batch)
        if capacity and path == "plain":
            path = "persistent"
    if path != "plain" and _needs_tf32(weight_hh):
        raise ConfigError(
            "the persistent LSTM multiplies float32 as TF32, which torch does not allow now: "
            'torch.set_float32_matmul_precision("high") does, or take bfloat16'
        )
    return PATHS.index(path)


def _needs_tf32(weight: Tensor) -> bool:
    """Whether the tensor cores would multiply more roughly than torch's switch allows."""
    return weight.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"


def _measured(weight_hh: Tensor, batch: int) -> str:
    """The fastest path of the table that the device can go."""
    device = torch.cuda.get_device_name(weight_hh.device)
    times, why = nearest(_table(), device, weight_hh.dtype, weight_hh.shape[1], batch)
    fits = torch.ops.captioner.lstm_path_fits
    path = next(
        (path for path in sorted(times, key=times.__getitem__)
         if fits(weight_hh, batch, PATHS.index(path))),
        "plain",
    )  # fmt: skip
    _say(path, why)
    return path


def nearest(
    table: Table, device: str, dtype: torch.dtype, hidden_size: int, batch_size: int
) -> tuple[dict[str, float], str]:
    """Milliseconds by path in the cell nearest to these sizes, and what they say, in words.

    Near is meant on logarithmic scales; beyond the smallest and largest sizes that were measured
    nothing is concluded, and there are no times.
    """
    name = str(dtype).removeprefix("torch.")
    cells = table.get(device, {}).get(name, [])
    sizes = dict(zip(SIZES, (hidden_size, batch_size), strict=True))
    if not cells:
        return {}, f"nothing was measured on {device} in {name}"
    for key, size in sizes.items():
        low, high = min(cell[key] for cell in cells), max(cell[key] for cell in cells)
        if not low <= size <= high:
            return {}, f"{key} {size} is beyond what was measured, {low} to {high}"
    cell = min(cells, key=lambda cell: sum(math.log(cell[k] / n) ** 2 for k, n in sizes.items()))
    times: dict[str, float] = cell["milliseconds"]
    words = ", ".join(f"{path} {time:.3g} ms" for path, time in times.items())
    return times, f"measured nearby: {words}"


def check_table(table: Any) -> Table:
    """`table` if it has the form above, else ConfigError with what is wrong."""
    for device, types in table.items():
        for name, cells in types.items():
            for cell in cells:
                times = cell.get("milliseconds", {})
                right = set(cell) == {*SIZES, "milliseconds"} and times and set(times) <= {*PATHS}
                if not right or min(cell[key] for key in SIZES) < 1 or min(times.values()) <= 0:
                    raise ConfigError(
                        f"lstm_paths.json, {device}, {name}: a cell must have {', '.join(SIZES)} "
                        f"and milliseconds of {', '.join(PATHS)}, got {cell}"
                    )
    found: Table = table
    return found


@cache
def _table() -> Table:
    text = files("captioner.ops").joinpath("lstm_paths.json").read_text(encoding="utf-8")
    return check_table(json.loads(text))


@cache
def _say(path: str, why: str) -> None:
    log.info("LSTM on CUDA: %s (%s)", path, why)
