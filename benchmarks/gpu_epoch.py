"""The stage `epoch` of `make gpu-check`: whole epochs over captions, eager and as one graph.

Shapes: n images, F image feature, B captions a batch, H hidden.
"""

import functools
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.captions import Workload, random_features, synthetic_images
from benchmarks.gpu_jobs import Note, judge, run_stage
from benchmarks.gpu_stages import Part
from benchmarks.roofline import Gemms, step_roofline
from benchmarks.suite import SuiteResult
from benchmarks.timing import interleaved, synchronize
from benchmarks.training import PLAIN, GraphSteps, StepSettings, Training
from benchmarks.worker import process_age
from captioner.errors import CaptionerError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import cider
from captioner.evaluation.corpus import encode
from captioner.generation import Constraints, beam_search
from captioner.inference.captions import CaptionGenerator

CUDNN, OURS, OUR_LOOP = "graph torch", "graph persistent", "eager persistent"
FLICKR8K = {"images": 6000, "feature_dim": 1280}  # EfficientNet-lite's features
JOB_SECONDS = 60.0  # what takes longer hangs
WARM_UP = 20  # steps
# Nats a token that curves of equal steps may be apart: Adam blows roundings up, and bfloat16 keeps
# eight bits.
SAME_LOSS = {"float32": 2e-3, "tf32": 2e-3, "bfloat16": 2e-2}
FLAT = 1 << 20  # bytes
REPLAYS = 3  # of the time line
Jobs = dict[str, dict[str, Any]]
Found = dict[str, Any]
Event = dict[str, Any]  # of a profiler's trace


def epoch_jobs(folder: Path) -> Jobs:
    """Every job, those first that say most where time runs out; time lines go to `folder`."""

    def job(what: str, batch: int, *, dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
        sizes = {"hidden_size": 512, "batch_size": batch, "dtype": dtype}
        return {"what": what, "data": FLICKR8K, "sizes": sizes, **more}

    def graphs(dtype: str, *batches: int) -> Jobs:
        both: dict[str, Any] = {"dtype": dtype, "names": [CUDNN, OURS], "repeats": 5}
        return {f"graphs, {dtype}, B {batch}": job("epochs", batch, **both) for batch in batches}

    losses = functools.partial(job, "losses", 64, steps=100)
    timeline = functools.partial(job, "timeline", 128, folder=str(folder))
    eager: dict[str, Any] = {"names": [PLAIN, "eager torch", OUR_LOOP], "repeats": 2}
    return {
        # Cold, it counts from the start of its process. "fused" is persistent within the graph,
        # and in generation the fastest that fits.
        "run": job("run", 128, name="graph fused", epochs=15, dev_images=1000, alone=True),
        **graphs("bfloat16", 128, 64),
        # What is compared is the graph: its LSTM is the eager loop's own. Then with others' loop.
        "losses, tf32": losses(dtype="tf32", names=[OUR_LOOP, OURS]),
        "losses, float32": losses(dtype="float32", names=[PLAIN, CUDNN]),
        "memory": job("memory", 64, name=OURS, steps=20_000),
        **graphs("bfloat16", 256, 1024),
        "time line": timeline(name=OURS),
        **{f"eager, B {batch}": job("epochs", batch, **eager) for batch in (128, 64, 256, 1024)},
        "losses, bfloat16": losses(names=[OUR_LOOP, OURS]),
        "time line of cuDNN's": timeline(name=CUDNN),
        **graphs("tf32", 128, 64),
    }


def run_epoch_stage(
    jobs: Jobs, *, seconds: float = 240.0, device: str = "cuda", note: Note = lambda part: None
) -> Part:
    """As many jobs as `seconds` allow."""
    settings = {"data": "lengths and words drawn as Flickr8k's", **FLICKR8K}
    judged = functools.partial(judge, settings=settings)
    limits = {"seconds": seconds, "job_seconds": JOB_SECONDS}
    return run_stage(do, jobs, judged, **limits, device=device, note=note)


def do(
    device: torch.device, what: str, data: dict[str, Any], sizes: dict[str, Any], **more: Any
) -> Found:
    """The job `what` on captions drawn as Workload(**data) says, with StepSettings(**sizes)."""
    settings = StepSettings(**sizes, clip_norm=5.0)
    training = Training(workload=Workload(**data), settings=settings, device=device)
    with training.precision():
        return JOBS[what](training, **more)


def time_epochs(training: Training, *, names: Sequence[str], repeats: int) -> Found:
    """Seconds an epoch of each, taken in turn; the roofline, and each one's share of it. What
    cannot start is `absent`."""
    calls: dict[str, Callable[[], object]] = {}
    absent: dict[str, str] = {}
    steps, axes, settings = training.steps_an_epoch, training.axes, training.settings
    for name in names:
        try:
            one = training.build(name)
            one.steps(WARM_UP)
        except (CaptionerError, RuntimeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
        else:
            calls[name] = functools.partial(one.steps, steps)
    taken = interleaved(calls, repeats=repeats, device=training.device, warmup=0)
    gemms = Gemms(
        hidden=settings.hidden_size,
        vocab_size=training.data.vocab_size,
        feature_dim=training.data.store.feature_dim,
        device=training.device,
        dtype=torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32,
    )
    tokens = round(training.data.tokens / steps)
    roofline = step_roofline(gemms, batch=settings.batch_size, tokens=tokens)
    result = SuiteResult()
    for name, spread in taken.items():
        result.add("an epoch", name, "s", spread, axes)
        share = spread.map(lambda seconds: steps * roofline.seconds / seconds)
        result.add("share of the roofline", name, "times", share, axes)
    for part, seconds in (("GEMMs", roofline.gemms), ("optimizer", roofline.optimizer)):
        what = f"roofline of an epoch, {part}"
        result.add(what, "measured rates", "s", steps * seconds, axes)
    return {**result.as_json(), "absent": absent}


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
    captioned by beam search and scored. The first is cold, and counts from the start of this
    process, of which it must be the first job; the second finds the device warm."""
    what, result = f"{epochs} epochs, each scored on {dev_images} images", SuiteResult()
    for how, age in (("cold", process_age()), ("warm", 0.0)):
        started = time.monotonic() - age
        scores = scored_run(training, name, epochs=epochs, dev_images=dev_images)
        synchronize(training.device)
        result.add(what, how, "s", time.monotonic() - started, training.axes)
    return {**result.as_json(), "last scores": scores}


def scored_run(training: Training, name: str, *, epochs: int, dev_images: int) -> dict[str, float]:
    """Train by the graph's steps and caption the dev set after each epoch; the last scores, in
    percent: BLEU and CIDEr-D, which need no tokeniser's data."""
    dev = synthetic_images(dev_images, seed=1, prefix="dev")
    drawn = random_features(dev, training.data.store.feature_dim, seed=1).features  # [n, 1, F]
    features = torch.from_numpy(drawn).to(training.device).split(1000)
    one, words = GraphSteps(training, name.split()[-1]), training.data.vocabulary
    # Beam size and longest caption as the defaults of generation.
    ends: dict[str, Any] = {"bos": words.bos, "eos": words.eos, "max_length": 30}
    constraints = Constraints(**ends, length_penalty=0.0, banned=(words.pad, words.bos, words.unk))
    search = functools.partial(beam_search, constraints=constraints, beam_size=3, n_best=1)
    generator = CaptionGenerator(one.model, words, search)
    for _ in range(epochs):
        one.model.train()
        one.steps(len(one.order))
        captions = [found[0].text for found in generator.all_captions(features)]
        corpus = encode([image.captions for image in dev], captions, str.split)
        scores = [*bleu(corpus), *cider(corpus)]
    return {metric.name: round(metric.value, 4) for metric in scores}


def watch_memory(training: Training, *, name: str, steps: int) -> Found:
    """How much more PyTorch holds of a GPU after many steps than after the first; of a CPU's memory
    it keeps no count: 0."""
    one, held = training.build(name), []
    for count in (WARM_UP, *[steps // 10] * 10):
        one.steps(count)
        synchronize(training.device)
        cuda = training.device.type == "cuda"
        held.append(torch.cuda.memory_reserved(training.device) if cuda else 0)
    result = SuiteResult()
    what, more = f"memory of the device gained in {steps} steps", max(held) - held[0]
    result.require(what, "bytes", more, at_most=FLAT, axes=training.axes)
    return {**result.as_json(), "held": held[0]}


def take_timeline(training: Training, *, name: str, folder: str) -> Found:
    """A trace of a few steps in `folder`, for Perfetto; microseconds by kernel."""
    one, settings = training.build(name), training.settings
    one.steps(WARM_UP)
    path = f"{name.replace(' ', '-')}-{settings.dtype}-B{settings.batch_size}.trace.json"
    events = take_trace(lambda: one.steps(REPLAYS), training.device, Path(folder) / path)
    found = {"trace": path, "steps": REPLAYS, "kernels": len(events)}
    times = {"busy_us": busy_microseconds(events), "microseconds": microseconds_by_kernel(events)}
    return {**SuiteResult().as_json(), **found, **times}


def take_trace(call: Callable[[], object], device: torch.device, path: Path) -> list[Event]:
    """Run `call` under the profiler; what ran, in order. The trace goes to `path`, for Perfetto."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs on standard error
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    synchronize(device)
    with profile(activities=activities) as taken:
        call()
        synchronize(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    taken.export_chrome_trace(str(path))
    return read_events(path, ("kernel", "gpu_memcpy", "gpu_memset") if cuda else ("cpu_op",))


def read_events(path: Path, categories: Sequence[str]) -> list[Event]:
    """A trace's complete events of these categories, by their start: `name`, and `ts` and `dur` in
    microseconds."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [one for one in events if one.get("ph") == "X" and one.get("cat") in categories]
    return sorted(found, key=lambda event: event["ts"])


def busy_microseconds(events: Sequence[Event]) -> float:
    """How long at least one of the events, which are in order, was running."""
    busy, end = 0.0, float("-inf")
    for event in events:
        stop = event["ts"] + event["dur"]
        busy += max(0.0, stop - max(end, event["ts"]))
        end = max(end, stop)
    return busy


def microseconds_by_kernel(events: Sequence[Event]) -> dict[str, float]:
    """How long each kernel, named without arguments, took in all; the longest first."""
    kernels: defaultdict[str, float] = defaultdict(float)
    for event in events:
        name = event["name"].removeprefix("void ").replace("(anonymous namespace)::", "")
        kernels[re.sub(r"[<(].*", "", name).strip() or name] += event["dur"]
    return dict(sorted(kernels.items(), key=lambda one: -one[1]))


JOBS: dict[str, Callable[..., Found]] = {
    "epochs": time_epochs,
    "losses": compare_losses,
    "run": time_runs,
    "memory": watch_memory,
    "timeline": take_timeline,
}
