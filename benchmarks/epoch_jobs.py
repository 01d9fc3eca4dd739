"""What the epoch suite on a GPU measures, a function a job; run by benchmarks/gpu_epoch.py.

Each takes plain values and returns what JSON can hold: `figures` and `requirements` as a record has
them, and what else it found. Shapes: n images, F image feature, B captions a batch, H hidden.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.epoch_data import DrawnCaptions, draw_captions
from benchmarks.epoch_floor import step_floor, synchronize
from benchmarks.epoch_passes import (
    PLAIN,
    Passes,
    PassSettings,
    PlainPasses,
    float32_products,
)
from benchmarks.job_process import do_jobs, process_age
from benchmarks.own_passes import OWN
from benchmarks.record import Axes, Figure, Requirement, measured
from benchmarks.scored_run import ScoredRun
from benchmarks.several_runs import steps_at_once
from benchmarks.timeline import (
    busy_microseconds,
    draw_timeline,
    microseconds_by_kind,
    take_trace,
)
from benchmarks.timing import Spread, interleaved, paired_ratio
from benchmarks.workload import random_features, synthetic_images
from captioner.errors import CaptionerError

WARM_UP = 20  # steps
# Nats a token that curves of equal steps may be apart: Adam blows roundings up, and bfloat16 keeps
# eight bits.
SAME_LOSS = {"float32": 2e-3, "tf32": 2e-3, "bfloat16": 2e-2}
PASS_SECONDS, SPEED = 0.1, 2.0  # asked of our LSTM in the graph: at B=128, and to cuDNN's at B=64
RUN_SECONDS = 5.0  # asked of fifteen passes with their scores
FLAT = 1 << 20  # bytes
REPLAYS = 3  # of the time line
Found = dict[str, Any]


def do(device: torch.device, what: str, sizes: dict[str, int], **settings: Any) -> Found:
    """The job `what` on drawn captions of `sizes` (images, feature_dim)."""
    if what == "several":
        return count_several(device, sizes=sizes, **settings)
    data = draw_captions(sizes["images"], sizes["feature_dim"], seed=0)
    jobs: dict[str, Callable[..., Found]] = {
        "passes": time_passes, "losses": compare_losses, "run": time_runs, "memory": watch_memory,
        "timeline": take_timeline,
    }  # fmt: skip
    with float32_products(settings["dtype"]):
        return jobs[what](data, device, **settings)


def build_passes(settings: PassSettings, data: DrawnCaptions, device: torch.device) -> Passes:
    """The side, ready for its first step. All begin with the same weights, drawn from the seed."""
    kinds: dict[str, Callable[..., Passes]] = {PLAIN: PlainPasses, **OWN}
    return kinds[settings.way](settings, data, device)


def _axes(settings: PassSettings) -> Axes:
    return {"dtype": settings.dtype, "H": settings.hidden_size, "B": settings.batch_size}


def time_passes(
    data: DrawnCaptions, device: torch.device, *, sides: Sequence[str], repeats: int, **common: Any
) -> Found:
    """Seconds a pass of each side, taken in turn; the floor, and each side's share of it.

    Of two graphs the last is the one of which speed is asked. A side that cannot start is `absent`.
    """
    settings = PassSettings(side=sides[0], **common)
    a_pass = -(-len(data.dataset) // settings.batch_size)
    calls: dict[str, Callable[[], object]] = {}
    absent: dict[str, str] = {}
    for name in sides:
        try:
            side = build_passes(PassSettings(side=name, **common), data, device)
            side.steps(WARM_UP)
        except (CaptionerError, RuntimeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
        else:
            calls[name] = functools.partial(side.steps, a_pass)
    taken = interleaved(calls, repeats=repeats, device=device, warmup=0)
    floor = step_floor(
        batch=settings.batch_size, tokens=round(data.tokens / a_pass),
        hidden=settings.hidden_size, vocab_size=len(data.vocabulary),
        feature_dim=data.features.shape[2], device=device,
        dtype=torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32,
    )  # fmt: skip
    axes = _axes(settings)
    figures = [Figure("a pass", name, "s", spread, axes) for name, spread in taken.items()]
    for name, spread in taken.items():
        share = spread.map(lambda seconds: a_pass * floor.seconds / seconds)
        figures.append(Figure("share of the floor", name, "times", share, axes))
    for part, seconds in (("products", floor.products), ("optimizer", floor.optimizer)):
        found = Spread((a_pass * seconds,))
        figures.append(Figure(f"floor of a pass, {part}", "measured rates", "s", found, axes))
    return {**measured(figures, _asked_of_graphs(taken, axes)), "absent": absent}


def _asked_of_graphs(taken: dict[str, Spread], axes: Axes) -> list[Requirement]:
    """What is asked of the last of two graphs, where it is asked: bfloat16, H=512."""
    graphs = [name for name in taken if name.startswith("graph")]
    if len(graphs) < 2 or (axes["dtype"], axes["H"]) != ("bfloat16", 512):
        return []
    peer, ours = graphs
    asked = []
    if axes["B"] == 128:
        what = f"a pass of {ours}"
        asked.append(Requirement(what, "s", taken[ours], at_most=PASS_SECONDS, axes=axes))
    if axes["B"] == 64:
        what, speed = f"speed of {ours} to {peer}", paired_ratio(taken[peer], taken[ours])
        asked.append(Requirement(what, "times", speed, at_least=SPEED, axes=axes))
    return asked


def count_several(
    device: torch.device, *, sizes: dict[str, int], counts: Sequence[int], seconds: float,
    **common: Any,
) -> Found:  # fmt: skip
    """Steps a second of several runs at once, all together, each in a process of its own."""
    settings = {"device": str(device), "sizes": sizes, "seconds": seconds, **common}
    figures, axes = [], _axes(PassSettings(**common))
    for count in counts:
        rate = sum(steps_at_once(count, settings)) / seconds
        what = f"steps of {count} runs at once"
        figures.append(Figure(what, common["side"], "1/s", Spread((rate,)), axes))
    return measured(figures, [])


def compare_losses(
    data: DrawnCaptions, device: torch.device, *, sides: Sequence[str], steps: int, **common: Any
) -> Found:
    """Losses of two sides beside each other: the same batches from the same weights."""
    settings = [PassSettings(side=side, **common) for side in sides]
    curves = [build_passes(one, data, device).losses(steps) for one in settings]
    apart = Spread((max(abs(a - b) for a, b in zip(*curves, strict=True)),))
    what = f"losses of {sides[1]} apart from those of {sides[0]}, {steps} steps"
    at_most, axes = SAME_LOSS[settings[0].dtype], _axes(settings[0])
    asked = Requirement(what, "nats a token", apart, at_most=at_most, axes=axes)
    return {**measured([], [asked]), "losses": dict(zip(sides, curves, strict=True))}


def time_runs(
    data: DrawnCaptions,
    device: torch.device,
    *,
    side: str,
    passes: int,
    dev_images: int,
    **common: Any,
) -> Found:
    """The wall clock of whole runs: everything built, `passes` passes, after each the dev set
    captioned by beam search and scored.

    The first is cold, and counts from the start of this process, of which it must be the first
    job. The second finds the device warm, and builds everything anew all the same, the graph too.
    """
    settings = PassSettings(side=side, **common)
    dev = synthetic_images(dev_images, seed=1, prefix="dev")
    features = torch.from_numpy(random_features(dev, data.features.shape[2], seed=1).features)
    seconds: dict[str, float] = {}
    scores: list[dict[str, float]] = []
    for how, age in (("cold", process_age()), ("warm", 0.0)):
        started = time.monotonic() - age
        run = ScoredRun(settings, data, dev, features, device)
        scores = [run.train_and_score() for _ in range(passes)]
        synchronize(device)
        seconds[how] = time.monotonic() - started
    axes, what = _axes(settings), f"{passes} passes, each scored on {dev_images} images"
    figures = [Figure(what, how, "s", Spread((one,)), axes) for how, one in seconds.items()]
    warm = Spread((seconds["warm"],))
    asked = Requirement(f"{what}, warm", "s", warm, at_most=RUN_SECONDS, axes=axes)
    return {**measured(figures, [asked]), "scores": scores}


def watch_memory(
    data: DrawnCaptions, device: torch.device, *, side: str, steps: int, looks: int, **common: Any
) -> Found:
    """What PyTorch holds of the device after the first steps, and how much more after many."""
    settings = PassSettings(side=side, **common)
    passes = build_passes(settings, data, device)
    passes.steps(WARM_UP)
    held = [held_bytes(device)]
    for _ in range(looks):
        passes.steps(steps // looks)
        held.append(held_bytes(device))
    more = Spread((float(max(held) - held[0]),))
    what = f"memory of the device gained in {steps} steps"
    asked = Requirement(what, "bytes", more, at_most=FLAT, axes=_axes(settings))
    return {**measured([], [asked]), "held": held}


def held_bytes(device: torch.device) -> int:
    """What PyTorch has taken from a GPU; of a CPU's memory it keeps no count: 0."""
    synchronize(device)
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def take_timeline(
    data: DrawnCaptions, device: torch.device, *, side: str, folder: str, **common: Any
) -> Found:
    """A trace of a few steps and its picture, both in `folder`; microseconds by kind of kernel."""
    settings = PassSettings(side=side, **common)
    passes = build_passes(settings, data, device)
    passes.steps(WARM_UP)
    name = f"{side.replace(' ', '-')}-{settings.dtype}-B{settings.batch_size}"
    bars = take_trace(lambda: passes.steps(REPLAYS), device, Path(folder) / f"{name}.trace.json")
    picture = Path(folder) / f"{name}.html"
    picture.write_text(draw_timeline(bars, f"{REPLAYS} steps of {name}"), encoding="utf-8")
    return {
        **measured([], []), "picture": picture.name, "kernels": len(bars),
        "busy_us": busy_microseconds(bars), "microseconds": microseconds_by_kind(bars),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(do_jobs(do, Path(sys.argv[1]), Path(sys.argv[2])))
