"""suite=lstm: forward and backward of one LSTM layer over ragged captions, every backend.

Shapes: B sequences, T longest length, N packed tokens, U distinct rows among them, H hidden size
(= input size E).

All sides of a cell are timed in turn with the peer, torch.nn.LSTM on the same packed rows, and with
the floor: the layer's matrix products alone and, on a GPU, a copy of the bytes it has to move.
Needs only torch and numpy, so that a bare machine with a GPU can run it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.lstm_case import Case, Cell, grid, make_case
from benchmarks.lstm_sides import (
    BACKWARD,
    BOTH,
    DISTINCT,
    FORWARD,
    FUSED,
    PADDED,
    PEER,
    SIDES,
    Side,
    products,
    takes,
    transfers,
    why_absent,
)
from benchmarks.lstm_steps import promises_on_chip, step_figures
from benchmarks.memory import peak_allocated
from benchmarks.record import Axes, Figure, Requirement, SuiteResult
from benchmarks.timing import Prepared, Spread, highest, interleaved, paired_ratio

# Largest difference to the peer, to the largest value: what each type's rounding allows.
TOLERANCE = {"float32": 1e-4, "tf32": 0.01, "float64": 1e-10, "bfloat16": 0.05, "float16": 0.01}
MIN_SECONDS = 0.05  # of calls in succession a repeat
PRODUCTS, COPY = "products", "copy"
SHARE_OF_FLOOR = 0.75
PROMISED_THREADS = 2
log = logging.getLogger(__name__)


def lstm_suite(
    *,
    batch_sizes: Sequence[int],
    hidden_sizes: Sequence[int],
    dtypes: Sequence[str],
    lengths: Sequence[str],
    backends: Sequence[str],
    repeats: int,
    device: torch.device,
    seed: int,
    data_root: str | None = None,
) -> SuiteResult:
    """Measure the `backends`, and packed nn.LSTM beside them, on every cell of the grid.

    A backend that is not built is left out, which is said aloud and noted in the settings.
    """
    names, absent = present_sides(backends, device)
    for name, reason in absent.items():
        log.warning("%s is skipped: %s", name, reason)
    result = SuiteResult(suite_settings(absent, seed=seed, data_root=data_root), [], [])
    cells = grid(lengths=lengths, dtypes=dtypes, hidden_sizes=hidden_sizes, batch_sizes=batch_sizes)
    for number, cell in enumerate(cells, start=1):
        log.info("%d of %d: %s", number, len(cells), cell)
        measured = measure(
            cell, names, repeats=repeats, device=device, seed=seed, data_root=data_root
        )
        result.settings["batches"].append(measured.settings)
        result.figures.extend(measured.figures)
        result.requirements.extend(measured.requirements)
    return result


def present_sides(
    backends: Sequence[str], device: torch.device
) -> tuple[list[str], dict[str, str]]:
    """The sides that can run, the peer first, and the reason for each that cannot.

    With "fused" comes its second side, over the distinct tokens.
    """
    wanted = [PEER, *backends, *([DISTINCT] if FUSED in backends else [])]
    reasons = {name: why_absent(name, device) for name in dict.fromkeys(wanted)}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in reasons if name not in absent], absent


def suite_settings(absent: dict[str, str], *, seed: int, data_root: str | None) -> dict[str, Any]:
    """What holds for all cells; `batches` takes what each cell ran on."""
    return {
        "captions": "drawn as Flickr8k's" if data_root is None else "Flickr8k's own lengths",
        "layers": 1,
        "tf32": False,
        "seed": seed,
        "skipped": absent,
        "batches": [],
    }


def measure(
    cell: Cell,
    names: Sequence[str],
    *,
    repeats: int,
    device: torch.device,
    seed: int,
    data_root: str | None = None,
    min_seconds: float | None = None,
) -> SuiteResult:
    """Times, ratios, memory and agreement of the sides `names`, with the peer, on one cell."""
    case = make_case(cell, device=device, seed=seed, data_root=data_root)
    sides = {name: SIDES[name](case) for name in names if takes(name, cell, device)}
    with products_of(cell.dtype):
        requirements = _differences(case, sides, cell)
        figures = _memory(sides, cell.axes, device)
        for what in (FORWARD, BACKWARD, BOTH):
            taken = interleaved(
                {**_calls(sides, what), **_floors(case, what)},
                repeats=repeats, device=device, warmup=2,
                min_seconds=MIN_SECONDS if min_seconds is None else min_seconds,
            )  # fmt: skip
            figures += _times(what, taken, case.tokens, cell.axes)
    if promised(cell, device):
        requirements += _promises(figures, cell)
    if device.type == "cuda":
        steps = step_figures(case, sides, cell)
        figures += steps
        requirements += promises_on_chip([*figures, *steps], cell)
    settings = {
        **cell.axes, "tokens": case.tokens, "distinct_rows": len(case.table),
        "steps": len(case.batch_sizes),
    }  # fmt: skip
    return SuiteResult(settings, figures, requirements)


@contextlib.contextmanager
def products_of(dtype: str) -> Iterator[None]:
    """float32 is float32 on every side, and tf32 is TF32: cuDNN rounds operands by default, cuBLAS
    does not."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def _calls(sides: dict[str, Side], what: str) -> dict[str, Any]:
    """Each side's call; the backward alone works on a forward pass of its own, not timed."""
    if what == FORWARD:
        return {name: side.forward for name, side in sides.items()}
    if what == BOTH:
        return {name: side.both for name, side in sides.items()}
    return {name: Prepared(side.forward, side.backward) for name, side in sides.items()}


def _floors(case: Case, what: str) -> dict[str, Any]:
    floors = {PRODUCTS: products(case)[what]}
    if case.table.is_cuda:
        floors[COPY] = transfers(case)[what]
    return floors


def _times(what: str, taken: dict[str, Spread], tokens: int, axes: Axes) -> list[Figure]:
    """Milliseconds of all; tokens/s, share of the floor and ratios of the sides."""
    floors = [taken[name] for name in (PRODUCTS, COPY) if name in taken]
    floor = highest(floors)
    figures = []
    for name, spread in taken.items():
        figures.append(Figure(what, name, "ms", spread.map(lambda s: 1e3 * s), axes))
        if name in (PRODUCTS, COPY):
            continue
        rate = spread.map(lambda s: tokens / s)
        figures.append(Figure(what, name, "tokens/s", rate, axes))
        share = paired_ratio(floor, spread)
        figures.append(Figure(f"{what}, share of the floor", name, "times", share, axes))
        others = {FUSED: (PEER, PADDED), DISTINCT: (PEER, FUSED)}.get(name, (PEER,))
        for other in others:
            if other in taken and other != name:
                ratio = paired_ratio(taken[other], spread)
                figures.append(Figure(f"{what}, speed to {other}", name, "times", ratio, axes))
    return figures


def _memory(sides: dict[str, Side], axes: Axes, device: torch.device) -> list[Figure]:
    """The most that forward and backward hold at a time; each side has run once before."""
    return [
        Figure("peak memory", name, "MB", Spread((peak_allocated(side.both, device) / 1e6,)), axes)
        for name, side in sides.items()
    ]


def _differences(case: Case, sides: dict[str, Side], cell: Cell) -> list[Requirement]:
    """How far output and gradients lie from the peer's, to the largest value of each."""
    results = {name: _common_form(side) for name, side in sides.items()}
    requirements = []
    for name, tensors in results.items():
        if name == PEER:
            continue
        pairs = zip(tensors, results[PEER], strict=True)
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        requirements.append(
            Requirement(
                f"largest difference of {name} to {PEER}", "times", Spread((apart,)),
                at_most=TOLERANCE[cell.dtype], axes=cell.axes,
            )
        )  # fmt: skip
    return requirements


def _common_form(side: Side) -> list[Tensor]:
    """Output [N, H], the table's gradient [U, E] and those of the weights, in float64."""
    output, (grad_rows, *grad_weights) = side.both()
    tensors = [side.packed(output.detach().double()), side.distinct(grad_rows.double())]
    return [*tensors, *(weight.double() for weight in grad_weights)]


def promised(cell: Cell, device: torch.device) -> bool:
    """Whether the fused backend's promises hold here: captions in float32 on two CPU threads."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads != PROMISED_THREADS:
        return False
    return (cell.dtype, cell.lengths) == ("float32", "flickr8k")


def least_speed(batch: int, hidden: int) -> float | None:
    """How many times as fast as packed nn.LSTM the fused backend must be, forward and backward."""
    if batch == 256 or hidden == 1024:
        return 1.2  # the products take most of the time
    if (batch, hidden) == (64, 512):
        return 1.8
    return 1.5 if batch in (16, 64, 128) and hidden in (256, 512) else None


def _promises(figures: list[Figure], cell: Cell) -> list[Requirement]:
    """What the fused backend must reach in this cell, from the figures taken."""
    found = {(one.what, one.side): one.spread for one in figures if one.unit in ("times", "MB")}
    speed = found.get((f"{BOTH}, speed to {PEER}", FUSED))
    if speed is None:
        return []
    share = found[f"{BOTH}, share of the floor", FUSED]
    memory = paired_ratio(found["peak memory", FUSED], found["peak memory", PEER])
    least, axes = least_speed(cell.batch_size, cell.hidden_size), cell.axes
    what = f"{BOTH}, share of the floor of {FUSED}"
    promises = [
        Requirement(what, "times", share, at_least=SHARE_OF_FLOOR, axes=axes),
        Requirement(
            f"peak memory of {FUSED} to {PEER}", "times", memory, at_most=1.0, axes=axes
        ),
    ]  # fmt: skip
    if least is not None:
        what = f"{BOTH}, speed of {FUSED} to {PEER}"
        promises.insert(0, Requirement(what, "times", speed, at_least=least, axes=axes))
    return promises
