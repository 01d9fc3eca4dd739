"""The stage `epoch` of `make gpu-check`: whole epochs over captions, eager and as one graph.

A job is a function here that takes plain values and returns what JSON can hold: `figures` and
`requirements` as a record has them, and what else it found. Shapes: n images, F image feature, B
captions a batch, H hidden.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.captions import Workload, random_features, synthetic_images
from benchmarks.gpu_stages import Note, Part, judge, run_stage
from benchmarks.record import Axes, SuiteResult
from benchmarks.roofline import Gemms, step_roofline
from benchmarks.scored_run import ScoredRun
from benchmarks.timeline import busy_microseconds, microseconds_by_kernel, take_trace
from benchmarks.timing import Spread, interleaved, paired_ratio, synchronize
from benchmarks.training import PLAIN, StepSettings, TimedSteps, Training
from benchmarks.worker import Worker, process_age
from captioner.errors import CaptionerError

CUDNN, OURS, OUR_LOOP = "graph torch", "graph persistent", "eager persistent"
FLICKR8K = {"images": 6000, "feature_dim": 1280}  # EfficientNet-lite's features
EPOCHS, DEV_IMAGES, MANY_STEPS = 15, 1000, 20_000
STAGE_SECONDS = 240.0
JOB_SECONDS = 60.0  # what takes longer hangs
WARM_UP = 20  # steps
# Nats a token that curves of equal steps may be apart: Adam blows roundings up, and bfloat16 keeps
# eight bits.
SAME_LOSS = {"float32": 2e-3, "tf32": 2e-3, "bfloat16": 2e-2}
EPOCH_SECONDS, SPEED = 0.1, 2.0  # asked of our LSTM in the graph: at B=128, and to cuDNN's at B=64
RUN_SECONDS = 5.0  # asked of fifteen epochs with their scores
FLAT = 1 << 20  # bytes
REPLAYS = 3  # of the time line
Jobs = dict[str, dict[str, Any]]
Found = dict[str, Any]


def epoch_jobs(folder: Path) -> Jobs:
    """Every job, those first that say most where time runs out; time lines go to `folder`."""
    timeline = functools.partial(_job, "timeline", 128, folder=str(folder))
    return {
        # Cold, it counts from the start of its process. "fused" is persistent within the graph,
        # and in generation the fastest that fits.
        "run": _job(
            "run", 128, name="graph fused", epochs=EPOCHS, dev_images=DEV_IMAGES, alone=True
        ),
        **_graphs("bfloat16", 128, 64),
        # What is compared is the graph: its LSTM is the eager loop's own. Then with others' loop.
        "losses, tf32": _losses("tf32", OUR_LOOP, OURS),
        "losses, float32": _losses("float32", PLAIN, CUDNN),
        "memory": _job("memory", 64, name=OURS, steps=MANY_STEPS, looks=10),
        **_graphs("bfloat16", 256, 1024),
        "time line": timeline(name=OURS),
        **{f"eager, B {batch}": _eager(batch) for batch in (128, 64, 256, 1024)},
        "losses, bfloat16": _losses("bfloat16", OUR_LOOP, OURS),
        "several": _job("several", 128, name=OURS, counts=[1, 2, 4, 8], seconds=2.0),
        "time line of cuDNN's": timeline(name=CUDNN),
        **_graphs("tf32", 128, 64),
    }


def _job(what: str, batch_size: int, *, dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 512, "batch_size": batch_size, "dtype": dtype}
    return {"what": what, "data": FLICKR8K, "sizes": sizes, **more}


def _graphs(dtype: str, *batch_sizes: int) -> Jobs:
    both: dict[str, Any] = {"dtype": dtype, "names": [CUDNN, OURS], "repeats": 5}
    return {f"graphs, {dtype}, B {batch}": _job("epochs", batch, **both) for batch in batch_sizes}


def _eager(batch_size: int) -> dict[str, Any]:
    return _job("epochs", batch_size, names=[PLAIN, "eager torch", OUR_LOOP], repeats=2)


def _losses(dtype: str, *names: str) -> dict[str, Any]:
    return _job("losses", 64, dtype=dtype, names=list(names), steps=100)


def run_epoch_stage(
    jobs: Jobs,
    *,
    seconds: float = STAGE_SECONDS,
    device: str = "cuda",
    note: Note = lambda part: None,
) -> Part:
    """As many jobs as `seconds` allow."""
    settings = {"data": "lengths and words drawn as Flickr8k's", **FLICKR8K}
    return run_stage(
        do,
        jobs,
        seconds=seconds,
        job_seconds=JOB_SECONDS,
        device=device,
        judged=lambda found: judge(found, settings),
        note=note,
    )


def do(
    device: torch.device, what: str, data: dict[str, Any], sizes: dict[str, Any], **more: Any
) -> Found:
    """The job `what` on captions drawn as Workload(**data) says, with StepSettings(**sizes)."""
    settings = StepSettings(**sizes, clip_norm=5.0)
    training = Training(workload=Workload(**data), settings=settings, device=device)
    jobs: dict[str, Callable[..., Found]] = {
        "epochs": time_epochs,
        "losses": compare_losses,
        "run": time_runs,
        "memory": watch_memory,
        "timeline": take_timeline,
        "several": count_several,
    }
    with training.precision():
        return jobs[what](training, **more)


def time_epochs(training: Training, *, names: Sequence[str], repeats: int) -> Found:
    """Seconds an epoch of each, taken in turn; the roofline, and each one's share of it.

    Of two graphs the last is the one of which speed is asked. What cannot start is `absent`.
    """
    calls: dict[str, Callable[[], object]] = {}
    absent: dict[str, str] = {}
    steps = training.steps_an_epoch
    for name in names:
        try:
            one = training.build(name)
            one.steps(WARM_UP)
        except (CaptionerError, RuntimeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
        else:
            calls[name] = functools.partial(one.steps, steps)
    taken = interleaved(calls, repeats=repeats, device=training.device, warmup=0)
    roofline = step_roofline(
        Gemms(
            hidden=training.settings.hidden_size,
            vocab_size=training.data.vocab_size,
            feature_dim=training.data.store.feature_dim,
            device=training.device,
            dtype=torch.bfloat16 if training.settings.dtype == "bfloat16" else torch.float32,
        ),
        batch=training.settings.batch_size,
        tokens=round(training.data.tokens / steps),
    )
    result = SuiteResult()
    for name, spread in taken.items():
        result.add("an epoch", name, "s", spread, training.axes)
        share = spread.map(lambda seconds: steps * roofline.seconds / seconds)
        result.add("share of the roofline", name, "times", share, training.axes)
    for part, seconds in (("GEMMs", roofline.gemms), ("optimizer", roofline.optimizer)):
        what = f"roofline of an epoch, {part}"
        result.add(what, "measured rates", "s", steps * seconds, training.axes)
    require_of_graphs(result, taken, training.axes)
    return {**result.as_json(), "absent": absent}


def require_of_graphs(result: SuiteResult, taken: dict[str, Spread], axes: Axes) -> None:
    """What is asked of the last of two graphs, where it is asked: bfloat16, H=512."""
    graphs = [name for name in taken if name.startswith("graph")]
    if len(graphs) < 2 or (axes["dtype"], axes["H"]) != ("bfloat16", 512):
        return
    baseline, ours = graphs
    if axes["B"] == 128:
        result.require(f"an epoch of {ours}", "s", taken[ours], at_most=EPOCH_SECONDS, axes=axes)
    if axes["B"] == 64:
        what, speed = f"speed of {ours} to {baseline}", paired_ratio(taken[baseline], taken[ours])
        result.require(what, "times", speed, at_least=SPEED, axes=axes)


def count_several(training: Training, *, name: str, counts: Sequence[int], seconds: float) -> Found:
    """Steps a second of several runs at once, all together, each in a process of its own."""
    result = SuiteResult()
    for count in counts:
        with ExitStack() as stack:
            runs = [Worker(TimedSteps, name, training, WARM_UP) for _ in range(count)]
            for method, given in (("result", ()), ("count", (seconds,))):
                for one in runs:
                    if method == "result":
                        stack.enter_context(one)
                    one.send(method, *given)
                answers = [one.receive() for one in runs]
        what = f"steps of {count} runs at once"
        result.add(what, name, "1/s", sum(answers) / seconds, training.axes)
    return result.as_json()


def compare_losses(training: Training, *, names: Sequence[str], steps: int) -> Found:
    """Losses of two implementations: the same batches from the same weights."""
    curves = [training.build(name).losses(steps) for name in names]
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    what = f"losses of {names[1]} apart from those of {names[0]}, {steps} steps"
    result, most = SuiteResult(), SAME_LOSS[training.settings.dtype]
    result.require(what, "nats a token", apart, at_most=most, axes=training.axes)
    ends = {name: [curve[0], curve[-1]] for name, curve in zip(names, curves, strict=True)}
    return {**result.as_json(), "first and last loss": ends}


def time_runs(training: Training, *, name: str, epochs: int, dev_images: int) -> Found:
    """The wall clock of whole runs: everything built, `epochs` epochs, after each the dev set
    captioned by beam search and scored.

    The first is cold, and counts from the start of this process, of which it must be the first
    job. The second finds the device warm, and builds everything anew all the same, the graph too.
    """
    dev = synthetic_images(dev_images, seed=1, prefix="dev")
    feature_dim = training.data.store.feature_dim
    features = torch.from_numpy(random_features(dev, feature_dim, seed=1).features)
    what, result = f"{epochs} epochs, each scored on {dev_images} images", SuiteResult()
    scores: list[dict[str, float]] = []
    for how, age in (("cold", process_age()), ("warm", 0.0)):
        started = time.monotonic() - age
        run = ScoredRun(name, training, dev, features)
        scores = [run.train_and_score() for _ in range(epochs)]
        synchronize(training.device)
        seconds = time.monotonic() - started
        result.add(what, how, "s", seconds, training.axes)
    result.require(f"{what}, warm", "s", seconds, at_most=RUN_SECONDS, axes=training.axes)
    return {**result.as_json(), "last scores": scores[-1]}


def watch_memory(training: Training, *, name: str, steps: int, looks: int) -> Found:
    """How much more PyTorch holds of the device after many steps than after the first."""
    one = training.build(name)
    one.steps(WARM_UP)
    held = [held_bytes(training.device)]
    for _ in range(looks):
        one.steps(steps // looks)
        held.append(held_bytes(training.device))
    result = SuiteResult()
    what, more = f"memory of the device gained in {steps} steps", max(held) - held[0]
    result.require(what, "bytes", more, at_most=FLAT, axes=training.axes)
    return {**result.as_json(), "held": held[0]}


def held_bytes(device: torch.device) -> int:
    """What PyTorch has taken from a GPU; of a CPU's memory it keeps no count: 0."""
    synchronize(device)
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def take_timeline(training: Training, *, name: str, folder: str) -> Found:
    """A trace of a few steps in `folder`, for Perfetto; microseconds by kernel."""
    one, settings = training.build(name), training.settings
    one.steps(WARM_UP)
    path = f"{name.replace(' ', '-')}-{settings.dtype}-B{settings.batch_size}.trace.json"
    bars = take_trace(lambda: one.steps(REPLAYS), training.device, Path(folder) / path)
    found = {"trace": path, "steps": REPLAYS, "kernels": len(bars)}
    times = {"busy_us": busy_microseconds(bars), "microseconds": microseconds_by_kernel(bars)}
    return {**SuiteResult().as_json(), **found, **times}
