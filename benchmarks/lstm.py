"""suite=lstm: forward and backward of one LSTM layer over ragged captions, every backend.

Shapes: B sequences, T longest length, N packed tokens, U distinct rows among them, H hidden size
(= input size E).

All implementations of a cell are timed in turn with the baseline, torch.nn.LSTM on the same packed
rows, and with the roofline: the layer's GEMMs alone. Needs only torch and numpy, so that a bare
machine with a GPU can run it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.captions import DISTRIBUTIONS
from benchmarks.lstm_case import DTYPES, Cell, grid, make_case
from benchmarks.lstm_implementations import (
    BACKWARD,
    BASELINE,
    BOTH,
    DISTINCT,
    FORWARD,
    FUSED,
    IMPLEMENTATIONS,
    PADDED,
    Layer,
    gemms,
    takes,
    why_absent,
)
from benchmarks.lstm_kernels import add_step_times, require_of_kernels
from benchmarks.memory import peak_allocated
from benchmarks.record import Axes, SuiteResult
from benchmarks.settings import Run, SuiteSettings, float32_products, setting
from benchmarks.timing import Prepared, Spread, interleaved, paired_ratio

# Largest difference to the baseline, to the largest value: what each type's rounding allows.
TOLERANCE = {"float32": 1e-4, "tf32": 0.01, "float64": 1e-10, "bfloat16": 0.05, "float16": 0.01}
MIN_SECONDS = 0.05  # of calls in succession a repeat
GEMMS = "GEMMs"
SHARE_OF_ROOFLINE = 0.75
PROMISED_THREADS = 2
# Of what is measured, what is shown on the terminal.
SHOWN = (BOTH, f"{BOTH}, speed to {BASELINE}", f"{BOTH}, share of the roofline", "peak memory")
BACKENDS = tuple(name for name in IMPLEMENTATIONS if name != DISTINCT)
log = logging.getLogger(__name__)


@dataclass
class LstmBenchmark(SuiteSettings):
    """suite=lstm: the grid, and what is measured beside packed torch.nn.LSTM.

    lengths: flickr8k, equal or outlier (one long sequence among short ones). A backend that is not
    built is skipped aloud.
    """

    suite: ClassVar[str] = "lstm"
    batch_sizes: list[int] = setting([16, 64, 128])
    hidden_sizes: list[int] = setting([256, 512])
    dtypes: list[str] = setting(["float32"], choices=tuple(DTYPES))
    lengths: list[str] = setting(["flickr8k"], choices=DISTRIBUTIONS)
    backends: list[str] = setting(["reference", PADDED, FUSED], choices=BACKENDS)


def lstm_suite(settings: LstmBenchmark, run: Run) -> SuiteResult:
    """Measure the backends, and packed nn.LSTM beside them, on every cell of the grid.

    A backend that is not built is left out, which is said aloud and noted in the settings.
    """
    names, absent = present(settings.backends, run.device)
    for name, reason in absent.items():
        log.warning("%s is skipped: %s", name, reason)
    result = SuiteResult(suite_settings(absent, run))
    cells = grid(
        lengths=settings.lengths,
        dtypes=settings.dtypes,
        hidden_sizes=settings.hidden_sizes,
        batch_sizes=settings.batch_sizes,
    )
    for number, cell in enumerate(cells, start=1):
        log.info("%d of %d: %s", number, len(cells), cell)
        measured = measure(cell, names, run)
        result.settings["batches"].append(measured.settings)
        result.figures.extend(measured.figures)
        result.requirements.extend(measured.requirements)
    return result


def present(backends: Sequence[str], device: torch.device) -> tuple[list[str], dict[str, str]]:
    """The implementations that can run, the baseline first, and the reason for each that cannot.

    With "fused" comes its second implementation, over the distinct tokens.
    """
    wanted = [BASELINE, *backends, *([DISTINCT] if FUSED in backends else [])]
    reasons = {name: why_absent(name, device) for name in dict.fromkeys(wanted)}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in reasons if name not in absent], absent


def suite_settings(absent: dict[str, str], run: Run) -> dict[str, Any]:
    """What holds for all cells; `batches` takes what each cell ran on."""
    captions = "drawn as Flickr8k's" if run.data_root is None else "Flickr8k's own lengths"
    common = {"captions": captions, "layers": 1, "tf32": False, "seed": run.seed}
    return {**common, "skipped": absent, "batches": []}


def measure(
    cell: Cell, names: Sequence[str], run: Run, *, min_seconds: float | None = None
) -> SuiteResult:
    """Times, ratios, memory and agreement of the implementations `names` on one cell; the settings
    say what batch it ran on."""
    case = make_case(cell, device=run.device, seed=run.seed, data_root=run.data_root)
    layers = {name: IMPLEMENTATIONS[name](case) for name in names if takes(name, cell, run.device)}
    counts = {"tokens": case.tokens, "distinct_rows": len(case.table)}
    result = SuiteResult({**cell.axes, **counts, "steps": len(case.batch_sizes)})
    with float32_products(tf32=cell.dtype == "tf32"):
        _require_agreement(result, layers, cell)
        for name, layer in layers.items():
            peak = peak_allocated(layer.both, run.device) / 1e6  # each has run once before
            result.add("peak memory", name, "MB", peak, axes=cell.axes)
        for what in (FORWARD, BACKWARD, BOTH):
            taken = interleaved(
                {**_calls(layers, what), GEMMS: gemms(case)[what]},
                repeats=run.repeats,
                device=run.device,
                warmup=2,
                min_seconds=MIN_SECONDS if min_seconds is None else min_seconds,
            )
            _add_times(result, what, taken, case.tokens, cell.axes)
    if promised(cell, run.device):
        _require_of_fused(result, cell)
    if run.device.type == "cuda":
        add_step_times(result, case, layers, cell)
        require_of_kernels(result, cell)
    return result


def _calls(layers: dict[str, Layer], what: str) -> dict[str, Any]:
    """Each one's call; the backward alone works on a forward pass of its own, not timed."""
    if what == FORWARD:
        return {name: layer.forward for name, layer in layers.items()}
    if what == BOTH:
        return {name: layer.both for name, layer in layers.items()}
    return {name: Prepared(layer.forward, layer.backward) for name, layer in layers.items()}


def _add_times(
    result: SuiteResult, what: str, taken: dict[str, Spread], tokens: int, axes: Axes
) -> None:
    """Milliseconds of all; tokens/s, share of the roofline and ratios of the implementations."""
    for name, spread in taken.items():
        result.add(what, name, "ms", spread.map(lambda s: 1e3 * s), axes=axes)
        if name == GEMMS:
            continue
        result.add(what, name, "tokens/s", spread.map(lambda s: tokens / s), axes=axes)
        share = paired_ratio(taken[GEMMS], spread)
        result.add(f"{what}, share of the roofline", name, "times", share, axes=axes)
        others = {FUSED: (BASELINE, PADDED), DISTINCT: (BASELINE, FUSED)}.get(name, (BASELINE,))
        for other in others:
            if other in taken and other != name:
                ratio = paired_ratio(taken[other], spread)
                result.add(f"{what}, speed to {other}", name, "times", ratio, axes=axes)


def _require_agreement(result: SuiteResult, layers: dict[str, Layer], cell: Cell) -> None:
    """How far output and gradients may lie from the baseline's, to the largest value of each."""
    found = {name: _common_form(layer) for name, layer in layers.items()}
    for name, tensors in found.items():
        if name != BASELINE:
            pairs = zip(tensors, found[BASELINE], strict=True)
            apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            what, most = f"largest difference of {name} to {BASELINE}", TOLERANCE[cell.dtype]
            result.require(what, "times", apart, at_most=most, axes=cell.axes)


def _common_form(layer: Layer) -> list[Tensor]:
    """Output [N, H], the table's gradient [U, E] and those of the weights, in float64."""
    output, (grad_rows, *grad_weights) = layer.both()
    tensors = [layer.packed(output.detach().double()), layer.distinct(grad_rows.double())]
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
        return 1.2  # the GEMMs take most of the time
    if (batch, hidden) == (64, 512):
        return 1.8
    return 1.5 if batch in (16, 64, 128) and hidden in (256, 512) else None


def _require_of_fused(result: SuiteResult, cell: Cell) -> None:
    """What the fused backend must reach in this cell, from the figures taken."""
    found = {(one.what, one.implementation): one.spread for one in result.figures}
    speed = found.get((f"{BOTH}, speed to {BASELINE}", FUSED))
    if speed is None:
        return
    least, axes = least_speed(cell.batch_size, cell.hidden_size), cell.axes
    if least is not None:
        what = f"{BOTH}, speed of {FUSED} to {BASELINE}"
        result.require(what, "times", speed, at_least=least, axes=axes)
    share = found[f"{BOTH}, share of the roofline", FUSED]
    what = f"{BOTH}, share of the roofline of {FUSED}"
    result.require(what, "times", share, at_least=SHARE_OF_ROOFLINE, axes=axes)
    memory = paired_ratio(found["peak memory", FUSED], found["peak memory", BASELINE])
    what = f"peak memory of {FUSED} to {BASELINE}"
    result.require(what, "times", memory, at_most=1.0, axes=axes)
