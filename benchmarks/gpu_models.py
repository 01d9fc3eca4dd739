"""The stage `models` of `make gpu-check`: K models in one launch beside one after another.

Shapes: K models, B sequences, T longest length, N packed tokens, H hidden size.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.captions import Workload, steps_of_sequences
from benchmarks.gpu_epoch import FLICKR8K
from benchmarks.gpu_jobs import Note, judge, run_stage
from benchmarks.gpu_stages import Part
from benchmarks.lstm import TOLERANCE
from benchmarks.lstm_implementations import BOTH, DTYPES
from benchmarks.models_prediction import COUNTS, expected_microseconds
from benchmarks.suite import Axes, SuiteResult
from benchmarks.timing import interleaved, seconds_a_call
from benchmarks.training import EagerSteps, GraphSteps, Steps, StepSettings, Training
from captioner.ops.algorithms import Algorithm
from captioner.training.stacked import StackedModels
from captioner.training.stacked_graph import StackedGraphStep

ONE_LAUNCH, IN_TURN = "in one launch", "one after another"
JOB_SECONDS = 60.0  # what takes longer hangs
Found = dict[str, Any]


def models_jobs() -> dict[str, dict[str, Any]]:
    """Every job, those first that say most where time runs out."""
    cells = itertools.product((64, 128), (512, 256))
    lstm: dict[str, dict[str, Any]] = {
        f"LSTM, H {hidden}, B {batch}": {
            "what": "lstm",
            "hidden_size": hidden,
            "batch_size": batch,
            "counts": list(COUNTS),
        }
        for batch, hidden in cells
    }
    step = {
        "what": "steps",
        "data": FLICKR8K,
        "sizes": {"hidden_size": 512, "batch_size": 64, "dtype": "bfloat16"},
    }
    return {**lstm, "training step": {**step, "counts": [1, 8, 32]}}


def run_models_stage(
    jobs: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    seconds: float = 180.0,
    device: str = "cuda",
    note: Note = lambda part: None,
) -> Part:
    """As many jobs as `seconds` allow."""
    judged = functools.partial(judge, settings={"lengths": "drawn as Flickr8k's", **FLICKR8K})
    limits = {"seconds": seconds, "job_seconds": JOB_SECONDS}
    return run_stage(do, jobs or models_jobs(), judged, **limits, device=device, note=note)


def do(device: torch.device, what: str, **settings: Any) -> Found:
    """In a process of its own: the job `what`."""
    return JOBS[what](device, **settings)


def time_lstm(
    device: torch.device,
    *,
    hidden_size: int,
    batch_size: int,
    counts: Sequence[int],
    dtype: str = "bfloat16",
) -> Found:
    """Forward and backward of one layer for K models, in one call and in K, each as a graph on a
    GPU; both must agree. Beside them what docs/cuda.md expected."""
    result = SuiteResult()
    axes: Axes = {"dtype": dtype, "H": hidden_size, "B": batch_size}
    call, arguments = lstm_calls(device, max(counts), hidden_size, batch_size, DTYPES[dtype])
    taken: dict[tuple[str, int], float] = {}
    for count in counts:
        own = [x[:count] for x in arguments]
        alone = [[x[k] for x in arguments] for k in range(count)]
        require_agreement(result, call(own), [call(x) for x in alone], axes | {"K": count}, dtype)
        ways: dict[str, Callable[[], object]] = {
            ONE_LAUNCH: functools.partial(call, own),
            IN_TURN: functools.partial(_all, [functools.partial(call, x) for x in alone]),
        }
        for name, way in ways.items():
            seconds = seconds_a_call(way, device, calls=2)
            taken[name, count] = seconds
            result.add(BOTH, name, "us", 1e6 * seconds, axes | {"K": count})
        one = taken[ONE_LAUNCH, counts[0]] / counts[0]
        share = taken[ONE_LAUNCH, count] / taken[IN_TURN, count]
        result.add("share of one after another", ONE_LAUNCH, "times", share, axes | {"K": count})
        times = taken[ONE_LAUNCH, count] / one
        result.add("times one model", ONE_LAUNCH, "times", times, axes | {"K": count})
        expected = expected_microseconds(count, hidden_size, batch_size)
        result.add(f"{BOTH}, expected", ONE_LAUNCH, "us", expected, axes | {"K": count})
    return result.as_json()


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def require_agreement(
    result: SuiteResult, found: list[Tensor], alone: list[list[Tensor]], axes: Axes, dtype: str
) -> None:
    """How far the results of K models in one call may lie from those of each."""
    apart = [
        float((own[k].double() - one.double()).abs().max() / one.double().abs().max())
        for k, results in enumerate(alone)
        for own, one in zip(found, results, strict=True)
    ]
    what = f"largest difference of K models {ONE_LAUNCH} to {IN_TURN}"
    result.require(what, "times", max(apart), at_most=TOLERANCE[dtype], axes=axes)


def lstm_calls(
    device: torch.device, count: int, hidden: int, batch: int, dtype: torch.dtype
) -> tuple[Callable[[list[Tensor]], list[Tensor]], list[Tensor]]:
    """Forward and backward of the operators, of K models or of one; and the arguments of K."""
    drawn = torch.from_numpy(steps_of_sequences("flickr8k", batch, seed=0))
    sizes = (torch.arange(int(drawn.max())).unsqueeze(1) < drawn).sum(1)
    tokens, gates = int(sizes.sum()), 4 * hidden
    generator = torch.Generator().manual_seed(0)
    states: list[tuple[int, ...]] = [(batch, hidden)] * 2
    weights = [(gates, hidden), (gates, hidden), (gates,), (gates,)]
    shapes = [(tokens, hidden), *states, *weights, (tokens, hidden), *states]
    scale = hidden**-0.5
    arguments = [
        (scale * torch.randn(count, *shape, generator=generator)).to(device, dtype)
        for shape in shapes
    ]
    captured = device.type == "cuda"
    batch_sizes = sizes.to(device)
    algorithm = int(Algorithm.persistent if captured else Algorithm.plain)
    operators = torch.ops.captioner

    def call(x: list[Tensor]) -> list[Tensor]:
        input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, *gradients = x
        head = (input, batch_sizes, hx, cx, weight_ih, weight_hh)
        switches = (captured, algorithm)
        outputs = operators.lstm_packed(*head, bias_ih, bias_hh, None, *switches)
        saved = (outputs[0], outputs[3])
        found = operators.lstm_packed_backward(*gradients, *head, *saved, None, True, *switches)
        return [*outputs[:3], *found]

    return call, arguments


class StackedSteps(Steps):
    """Steps of K models that are computed together, eager or as one graph, over the batches that
    one of them takes alone."""

    def __init__(self, training: Training, backend: str, count: int, *, graph: bool) -> None:
        kind = GraphSteps if graph else EagerSteps
        each = [kind(training, backend) for _ in range(count)]
        self.batches, self.settings = each[0].batches, training.settings.trainer
        self.each: list[Any] = [one.step for one in each]
        generators = [torch.Generator(training.device) for _ in each]
        self.models = StackedModels([one.model for one in each], generators)
        self.graph = StackedGraphStep(self.each, self.models, generators) if graph else None
        self.running = torch.zeros((), dtype=torch.float64, device=training.device)
        self.taken = 0

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps of every model; nothing is read from the device."""
        for batch in itertools.islice(self.batches, count):
            losses, tokens = self._compute([batch])
            for step, loss in zip(self.each, losses, strict=True):
                step([batch], self.taken, self.running, (loss, tokens))
            self.models.release()
            self.taken += 1

    def _compute(self, group: list[Any]) -> tuple[Sequence[Tensor], int]:
        if self.graph is not None:
            return self.graph(group, self.taken)
        smoothing, bf16 = self.settings.label_smoothing, self.settings.bf16
        return self.models.gradients(group, smoothing, bf16=bf16)


def time_steps(
    device: torch.device,
    *,
    data: dict[str, Any],
    sizes: dict[str, Any],
    counts: Sequence[int],
    backends: Sequence[str] = ("fused", "graph persistent"),
    graphs: Sequence[bool] = (False, True),
    steps: int = 20,
    repeats: int = 3,
) -> Found:
    """Milliseconds of a step of K models computed together beside K steps of a model alone, each
    eager and as one graph."""
    result = SuiteResult()
    training = Training(
        workload=Workload(**data), settings=StepSettings(**sizes, clip_norm=5.0), device=device
    )
    with training.precision():
        ways = {f"{name}, {IN_TURN}": training.build(name) for name in backends}
        for count in counts:
            together: dict[str, Steps] = {
                f"together, {'as one graph' if graph else 'eager'}": StackedSteps(
                    training, "persistent" if graph else backends[0], count, graph=graph
                )
                for graph in graphs
            }
            calls = {
                name: functools.partial(way.steps, steps) for name, way in (together | ways).items()
            }
            taken = interleaved(calls, repeats=repeats, device=device)
            for name, spread in taken.items():
                models = 1 if name.startswith("together") else count
                each = spread.map(functools.partial(_milliseconds, models / steps))
                result.add("a step of K models", name, "ms", each, training.axes | {"K": count})
    return result.as_json()


def _milliseconds(times: float, seconds: float) -> float:
    return 1e3 * times * seconds


JOBS: dict[str, Callable[..., Found]] = {"lstm": time_lstm, "steps": time_steps}
