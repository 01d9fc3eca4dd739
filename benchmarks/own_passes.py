"""This package's step as the trainer takes it: batch by batch, or as one graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.epoch_data import DrawnCaptions
from benchmarks.epoch_passes import CLIP_NORM, LR, PassSettings, build_model
from captioner.data.dataset import make_loader
from captioner.data.resident import ResidentCaptions, ResidentLoader, token_capacities
from captioner.training.distributed import World
from captioner.training.graph_step import GraphStep
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.step import PlainStep, StepSettings

MOST_STEPS = 50_000  # that a side is ever asked for: the learning rates of all lie on the device


class EagerPasses:
    """The loop over batches, each packed on the host and copied to the device."""

    def __init__(self, settings: PassSettings, data: DrawnCaptions, device: torch.device) -> None:
        self.model = build_model(settings, data).to(device).train()
        self.order = data.order(settings.batch_size, seed=settings.seed)
        self.data, self.device = data, device
        self.step = self._step(settings)
        self.step.prepare()
        self.taken = 0
        self.running = torch.zeros((), dtype=torch.float64, device=device)
        self._batches = self._all_batches()

    def _step(self, settings: PassSettings) -> PlainStep | GraphStep:
        return PlainStep(**self._parts(settings), world=World())

    def _parts(self, settings: PassSettings) -> dict[str, Any]:
        groups = parameter_groups(self.model, lr=LR, weight_decay=0.0, lr_by_prefix={})
        step = StepSettings(clip_norm=CLIP_NORM, bf16=settings.dtype == "bfloat16")
        return {
            "model": self.model, "optimizer": make_optimizer("adam", groups), "average": None,
            "settings": step, "total_steps": MOST_STEPS, "device": self.device,
        }  # fmt: skip

    def _all_batches(self) -> Iterator[Any]:
        """The batches of one epoch after another."""
        for epoch in itertools.count():
            self.order.epoch = epoch
            yield from self._of_epoch()

    def _of_epoch(self) -> Iterator[Any]:
        pinned = self.device.type == "cuda"
        yield from make_loader(self.data.dataset, self.order, workers=0, pin_memory=pinned)

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps; nothing is read from the device."""
        for _ in range(count):
            self._take()

    def losses(self, count: int) -> list[float]:
        """The mean loss a token of each of `count` steps, read after each."""
        found = []
        for _ in range(count):
            before = float(self.running)
            tokens = self._take()
            found.append((float(self.running) - before) / tokens)
        return found

    def _take(self) -> int:
        """One step: how many tokens its batch had."""
        tokens = self.step([next(self._batches)], self.taken, self.running)
        self.taken += 1
        return tokens


class GraphPasses(EagerPasses):
    """The step as one graph; where the device is no GPU, the same code, not captured."""

    def _step(self, settings: PassSettings) -> PlainStep | GraphStep:
        capacities = token_capacities(
            self.data.dataset.tokens_per_row, settings.batch_size, seed=settings.seed
        )
        self.resident = ResidentCaptions(
            self.data.dataset,
            batch_size=settings.batch_size,
            features=self.data.features,
            device=self.device,
            capacities=capacities,
        )
        return GraphStep(self.resident, **self._parts(settings))

    def _of_epoch(self) -> Iterator[Any]:
        yield from ResidentLoader(self.resident, self.order)


OWN = {"eager": EagerPasses, "graph": GraphPasses}
