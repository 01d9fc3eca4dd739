"""suite=epoch: one pass over the training captions, this package's step beside the plain loop.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch

from benchmarks.epoch_settings import ASKED, CASES, StepSettings
from benchmarks.epoch_sides import (
    COMPILED,
    PLAIN,
    PRODUCTS,
    Workload,
    build_side,
)
from benchmarks.record import Axes, Figure, Requirement, SuiteResult
from benchmarks.side_process import SideProcess
from benchmarks.timing import Spread, paired_ratio, shown
from benchmarks.train_memory import peak_memory_of_training
from benchmarks.workload import MAX_LENGTH, captioned_images
from captioner.data.tokenize import tokenize
from captioner.errors import CaptionerError

MEMORY_LIMIT = 1.5e9  # bytes
SAME_LOSS = 2e-3  # nats a token: float32 and an optimiser that blows roundings up
WARM_UP = 3  # steps


def epoch_suite(
    *,
    images: int,
    feature_dim: int,
    cases: Sequence[str],
    backends: Sequence[str],
    compiled: bool,
    steps: int,
    memory: bool,
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """Time blocks of `steps` steps of every side of each case; peak memory of a run on a CPU."""
    workload = Workload(
        images=images, feature_dim=feature_dim, data_root=data_root, seed=seed, device=device
    )
    captioned = captioned_images(images, data_root=data_root, seed=seed)
    captions = [tokenize(caption) for image in captioned for caption in image.captions]
    tokens = sum(min(len(words), MAX_LENGTH) + 1 for words in captions)
    names = [PLAIN, *([COMPILED] if compiled else []), PRODUCTS, *backends]
    result = SuiteResult(
        {
            "images": images,
            "captions": len(captions),
            "tokens": tokens,
            "data": "synthetic" if data_root is None else "flickr8k",
            "feature_dim": feature_dim,
            "steps_a_repeat": steps,
            "cases": {case: vars(CASES[case]) for case in cases},
            "seed": seed,
        },
        [],
        [],
    )
    for case in cases:
        measured = Measured(case, names, workload, len(captions), tokens)
        measured.take(steps=steps, repeats=repeats)
        result.settings.setdefault("left_out", {}).update(measured.left_out)
        result.figures.extend(measured.figures())
        result.requirements.extend(measured.requirements(backends))
    if memory and device.type == "cpu":
        peak = peak_memory_of_training(captioned, data_root=data_root, seed=seed) / 1e6
        _add_memory(result, Spread((peak,)))
    return result


class Measured:
    """One case: each side in a process of its own, a few steps in turn."""

    def __init__(
        self, case: str, names: Sequence[str], workload: Workload, captions: int, tokens: int
    ) -> None:
        self.case, self.names, self.workload = case, names, workload
        self.captions, self.tokens = captions, tokens
        self.settings: StepSettings = CASES[case]
        self.axes: Axes = {"case": case, "H": self.settings.hidden_size,
                           "B": self.settings.batch_size}  # fmt: skip
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, Spread] = {}
        self.losses: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}

    def take(self, *, steps: int, repeats: int) -> None:
        """Start all sides, then take `steps` of each in turn."""
        with ExitStack() as stack:
            sides = {name: stack.enter_context(self._process(name)) for name in self.names}
            for name in self.names:
                self._warm_up(name, sides)
            taken: dict[str, list[float]] = {name: [] for name in sides}
            for _ in shown(repeats, f"{self.case}: {' | '.join(sides)}"):
                for name, side in sides.items():
                    taken[name].append(side.seconds(steps) / steps)
            self.seconds = {name: Spread(tuple(values)) for name, values in taken.items()}
            self.losses = {name: side.losses() for name, side in sides.items()}
            self.peaks = {name: side.peak_bytes() for name, side in sides.items()}

    def _process(self, name: str) -> SideProcess:
        return SideProcess(
            build_side, name, self.workload, self.settings,
            threads=torch.get_num_threads(), device=self.workload.device,
        )  # fmt: skip

    def _warm_up(self, name: str, sides: dict[str, SideProcess]) -> None:
        """First steps; torch.compile's side may fail, and is then left out aloud."""
        try:
            sides[name].seconds(WARM_UP)
        except CaptionerError as error:
            if name != COMPILED:
                raise
            self.left_out[f"{name}, {self.case}"] = str(error)
            del sides[name]

    def figures(self) -> list[Figure]:
        """Each side's step, pass, rate of tokens and peak memory."""
        a_pass = -(-self.captions // self.settings.batch_size)
        found = []

        def rate(seconds: float) -> float:
            return self.tokens / (a_pass * seconds)

        for side, step in self.seconds.items():
            found += [
                Figure("a step", side, "ms", step.map(lambda s: 1e3 * s), self.axes),
                Figure("a pass", side, "s", step.map(lambda s: a_pass * s), self.axes),
                Figure(
                    "tokens a second",
                    side,
                    "tokens/s",
                    step.map(lambda s: self.tokens / (a_pass * s)),
                    self.axes,
                ),
            ]
            if self.workload.device.type == "cpu":
                peak = Spread((self.peaks[side] / 1e6,))
                found.append(Figure("peak memory of the process", side, "MB", peak, self.axes))
        return found

    def requirements(self, backends: Sequence[str]) -> list[Requirement]:
        """Speed to the plain loop, share of the products; equal losses where nothing is drawn."""
        found = []
        for backend in backends:
            ratio = paired_ratio(self.seconds[PLAIN], self.seconds[backend])
            asked = ASKED[self.case] if backend == "auto" else 1.0
            what = f"speed of {backend} to plain PyTorch"
            found.append(Requirement(what, "times", ratio, at_least=asked, axes=self.axes))
            share = paired_ratio(self.seconds[PRODUCTS], self.seconds[backend])
            what = f"products alone, share of {backend}'s step"
            found.append(Requirement(what, "times", share, at_least=0.7, axes=self.axes))
            if not (self.settings.input_dropout or self.settings.output_dropout):
                found.append(self._same_losses(backend, self.losses))
        return found

    def _same_losses(self, backend: str, losses: Mapping[str, list[float]]) -> Requirement:
        apart = [abs(a - b) for a, b in zip(losses[PLAIN][:100], losses[backend], strict=False)]
        return Requirement(
            f"losses of {backend} apart from plain PyTorch's, {len(apart)} steps",
            "nats a token", Spread((max(apart),)), at_most=SAME_LOSS, axes=self.axes,
        )  # fmt: skip


def _add_memory(result: SuiteResult, peak: Spread) -> None:
    """The peak of a whole run: reading, training, validation and checkpoints."""
    result.figures.append(Figure("peak memory of a run", "captioner", "MB", peak))
    result.requirements.append(Requirement("peak memory", "MB", peak, at_most=MEMORY_LIMIT / 1e6))
