"""Which algorithm the fused LSTM uses on a CUDA device.

`plain` launches a GEMM and a kernel a step and takes any shape and type. The others run all steps
in one launch with weight_hh in registers, where it fits: `persistent` exchanges a step's results
through L2, `cluster` (sm_90 on) through distributed shared memory (csrc/cuda/persistent.h).
The fastest is not guessed: algorithms.json holds what `make gpu-check` has measured, as

    {"NVIDIA H100 80GB HBM3": {"bfloat16": [
        {"hidden_size": 512, "batch_size": 64,
         "milliseconds": {"plain": 3.1, "persistent": 0.9, "cluster": 0.8}}, ...]}}

with the times of forward and backward together. Without a record for a device, type or size it is
`plain`.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from captioner.errors import ConfigError


class Algorithm(IntEnum):
    """As csrc/cuda/algorithm.h numbers them; the names are those of backends."""

    plain = 0
    persistent = 1
    cluster = 2


SIZES = ("hidden_size", "batch_size")
Table = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
log = logging.getLogger(__name__)


def choose_algorithm(
    backend: str, weight_hh: Tensor, batch: int, *, capacity: bool = False
) -> Algorithm:
    """The algorithm of a call of `backend`, "fused" or an algorithm's name; weight_hh [4H, H].

    With capacity "fused" is never plain, which needs batch_sizes on the host. Raises ConfigError
    where a persistent kernel is asked for in float32 while torch does not allow TF32, in which the
    tensor cores multiply; the operator itself refuses what does not fit the device.
    """
    if backend != "fused":
        algorithm = Algorithm[backend]
    elif torch.compiler.is_compiling() or _needs_tf32(weight_hh):  # no look-up while compiling
        algorithm = Algorithm.plain
    else:
        algorithm = _measured(weight_hh, batch)
    if backend == "fused" and capacity and algorithm == Algorithm.plain:
        algorithm = Algorithm.persistent
    if algorithm != Algorithm.plain and _needs_tf32(weight_hh):
        raise ConfigError(
            "the persistent LSTM multiplies float32 as TF32, which torch does not allow now: "
            'torch.set_float32_matmul_precision("high") does, or take bfloat16'
        )
    return algorithm


def fits(weight_hh: Tensor, batch: int, algorithm: Algorithm) -> bool:
    """Whether the CUDA device of weight_hh [4H, H] can run `algorithm` with `batch` sequences.

    Of K models, too: those that do not fit at the same time take turns.
    """
    # Under vmap the operator could not be given weight_hh, of which it reads no number.
    like = torch.empty(0, weight_hh.shape[-1], dtype=weight_hh.dtype, device=weight_hh.device)
    return bool(torch.ops.captioner.lstm_algorithm_fits(like, batch, int(algorithm)))


def _needs_tf32(weight: Tensor) -> bool:
    """Whether the tensor cores would multiply less precisely than torch's switch allows."""
    return weight.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"


def _measured(weight_hh: Tensor, batch: int) -> Algorithm:
    """The fastest algorithm of the table that fits the device."""
    device = torch.cuda.get_device_name(weight_hh.device)
    times, why = nearest(_table(), device, weight_hh.dtype, weight_hh.shape[1], batch)
    fastest = (Algorithm[name] for name in sorted(times, key=times.__getitem__))
    algorithm = next((one for one in fastest if fits(weight_hh, batch, one)), Algorithm.plain)
    _log_choice(algorithm, why)
    return algorithm


def nearest(
    table: Table, device: str, dtype: torch.dtype, hidden_size: int, batch_size: int
) -> tuple[dict[str, float], str]:
    """Milliseconds by algorithm in the cell nearest to these sizes, and a sentence about them.

    Distances are logarithmic; beyond the smallest and largest measured sizes there are no times.
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
    words = ", ".join(f"{algorithm} {time:.3g} ms" for algorithm, time in times.items())
    return times, f"measured nearby: {words}"


def check_table(table: Any) -> Table:
    """`table` if it has the form above, else ConfigError with what is wrong."""
    names = Algorithm.__members__
    for device, types in table.items():
        for name, cells in types.items():
            for cell in cells:
                times = cell.get("milliseconds", {})
                right = set(cell) == {*SIZES, "milliseconds"} and times and set(times) <= {*names}
                if not right or min(cell[key] for key in SIZES) < 1 or min(times.values()) <= 0:
                    raise ConfigError(
                        f"algorithms.json, {device}, {name}: a cell must have {', '.join(SIZES)} "
                        f"and milliseconds of {', '.join(names)}, got {cell}"
                    )
    found: Table = table
    return found


@cache
def _table() -> Table:
    text = files("captioner.ops").joinpath("algorithms.json").read_text(encoding="utf-8")
    return check_table(json.loads(text))


@cache
def _log_choice(algorithm: Algorithm, why: str) -> None:
    log.info("LSTM on CUDA: %s (%s)", algorithm.name, why)
