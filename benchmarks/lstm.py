"""suite=lstm: forward and backward of one LSTM layer over ragged captions, every backend.

Shapes: B sequences, T longest length, N packed tokens, U distinct rows among them, H hidden size
(= input size E).

All implementations of a cell are timed in turn with the baseline, torch.nn.LSTM on the same packed
rows, and with the roofline: the layer's GEMMs alone. Needs only torch and numpy.
"""

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.lstm_implementations import (
    BACKWARD,
    BASELINE,
    BOTH,
    DISTINCT,
    FORWARD,
    FUSED,
    IMPLEMENTATIONS,
    PADDED,
    PERSISTENT,
    Cell,
    Layer,
    gemms,
    make_case,
    takes,
    why_absent,
)
from benchmarks.memory import peak_allocated
from benchmarks.settings import LstmBenchmark
from benchmarks.suite import Axes, Run, SuiteResult, float32_products
from benchmarks.timing import Spread, interleaved, paired_ratio

# Largest difference to the baseline, to the largest value: what each type's rounding allows.
TOLERANCE = {"float32": 1e-4, "tf32": 0.01, "float64": 1e-10, "bfloat16": 0.05, "float16": 0.01}
MIN_SECONDS = 0.03  # of calls in succession a repeat
GEMMS = "GEMMs"
# Of what is measured, what is shown on the terminal.
SHOWN = (BOTH, f"{BOTH}, speed to {BASELINE}", f"{BOTH}, share of the roofline", "peak memory")
log = logging.getLogger(__name__)


def lstm_suite(settings: LstmBenchmark, run: Run) -> SuiteResult:
    """Measure the backends, and packed nn.LSTM beside them, on every cell of the grid.

    A backend that is not built is left out, which is said aloud and noted in the settings.
    """
    names, absent = present(settings.backends, run.device)
    for name, reason in absent.items():
        log.warning("%s is skipped: %s", name, reason)
    result = SuiteResult(suite_settings(absent, run))
    axes = (settings.lengths, settings.dtypes, settings.hidden_sizes, settings.batch_sizes)
    for cell in itertools.starmap(Cell, itertools.product(*axes)):
        log.info("%s", cell)
        result.settings["batches"].append(measure(result, cell, names, run))
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


def measure(result: SuiteResult, cell: Cell, names: Sequence[str], run: Run) -> dict[str, Any]:
    """Times, ratios, memory and agreement of the implementations `names` on one cell; returns what
    batch it ran on."""
    case = make_case(cell, device=run.device, seed=run.seed, data_root=run.data_root)
    layers = {name: IMPLEMENTATIONS[name](case) for name in names if takes(name, cell, run.device)}
    tokens, steps = len(case.input_rows), len(case.batch_sizes)
    with float32_products(tf32=cell.dtype == "tf32"):
        require_agreement(result, layers, cell)
        for name, layer in layers.items():
            peak = peak_allocated(layer.both, run.device) / 1e6  # each has run once before
            result.add("peak memory", name, "MB", peak, axes=cell.axes)
        for what, products in gemms(case).items():
            taken = interleaved(
                {**{name: layer.calls[what] for name, layer in layers.items()}, GEMMS: products},
                repeats=run.repeats,
                device=run.device,
                warmup=2,
                min_seconds=MIN_SECONDS,
            )
            add_times(result, what, taken, tokens, cell.axes)
    if run.device.type == "cuda":
        add_step_times(result, layers, steps, cell.axes)
    return {**cell.axes, "tokens": tokens, "distinct_rows": len(case.table), "steps": steps}


def add_times(
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
        for other in (BASELINE, FUSED if name == DISTINCT else PADDED):
            if other in taken and other != name:
                ratio = paired_ratio(taken[other], spread)
                result.add(f"{what}, speed to {other}", name, "times", ratio, axes=axes)


def add_step_times(
    result: SuiteResult, layers: Mapping[str, Layer], steps: int, axes: Axes
) -> None:
    """Microseconds of a time step of each persistent kernel: its whole time, by the profiler,
    through the number of steps. Nothing else is in it: no GEMM before or after, no launch."""
    for name in (name for name in PERSISTENT if name in layers):
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(20):
                layers[name].both()
            torch.cuda.synchronize()
        for what, taken in kernel_times(profiler.events(), steps).items():
            result.add(f"{what}, a time step", name, "us", Spread(tuple(taken)), axes=axes)


def kernel_times(events: Any, steps: int) -> dict[str, list[float]]:
    """Of each direction the microseconds a step of every call of its kernel, if any."""
    taken = {
        what: [
            one.device_time_total / steps
            for one in events
            if re.search(f"{what}_(steps|tiles)<", one.name)
        ]
        for what in (FORWARD, BACKWARD)
    }
    return {what: times for what, times in taken.items() if times}


def require_agreement(result: SuiteResult, layers: Mapping[str, Layer], cell: Cell) -> None:
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
