"""The implementations of a training step: the plain loop, and this package's, eager or as a graph.
All of one Training begin with the same weights and take the same batches in the same order."""

import itertools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.captions import (
    TrainingData,
    Workload,
    caption_batches,
    endless,
    load_workload,
)
from benchmarks.memory import own_bytes, peak_bytes
from benchmarks.plain_loop import Loss, PlainCaptioner, PlainCaptions, plain_steps
from benchmarks.roofline import Gemms
from benchmarks.suite import Axes, float32_products
from benchmarks.timing import synchronize
from captioner.data.dataset import BatchOrder, make_loader
from captioner.data.resident import ResidentCaptions, ResidentLoader, token_capacities
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel
from captioner.models.word_layers import DropoutRates
from captioner.training.distributed import World
from captioner.training.graph_step import GraphStep
from captioner.training.memory import keep_freed_memory
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.setup import TrainerSettings
from captioner.training.step import PlainStep

PLAIN, GEMMS = "plain PyTorch", "its GEMMs alone"
MOST_STEPS = 50_000  # ever taken: a graph keeps the learning rates of all of them on the device


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """A model size (embedding_dim is hidden_size) with its optimiser, named as in ModelConfig and
    OptimizerConfig. dtype: bfloat16, tf32 or float32, in which is multiplied."""

    hidden_size: int
    batch_size: int
    optimizer: str = "adam"
    lr: float = 1e-3
    arguments: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    label_smoothing: float = 0.0
    dtype: str = "float32"

    @property
    def trainer(self) -> TrainerSettings:
        """The same for this package's trainer."""
        clip: dict[str, Any] = {"clip_norm": self.clip_norm, "clip_value": self.clip_value}
        bf16, smoothing = self.dtype == "bfloat16", self.label_smoothing
        return TrainerSettings(epochs=1, bf16=bf16, label_smoothing=smoothing, **clip)


# The loop that everybody writes, at neuraltalk's and neon's sizes; then the experiments as they are
# (configs/experiment: tests hold these figures to them).
CASES = {
    "adam_256": StepSettings(hidden_size=256, batch_size=100, clip_norm=5.0),
    "adam_512": StepSettings(hidden_size=512, batch_size=128, clip_norm=5.0),
    "neuraltalk": StepSettings(
        hidden_size=256,
        batch_size=100,
        optimizer="rmsprop",
        arguments={"alpha": 0.999, "eps": 1e-8},
        weight_decay=1e-8,
        clip_value=5.0,
        input_dropout=0.5,
        output_dropout=0.5,
    ),
    "neon": StepSettings(
        hidden_size=512,
        batch_size=128,
        optimizer="rmsprop",
        lr=5e-4,
        arguments={"alpha": 0.997, "eps": 1e-8},
        clip_value=1.0,
        input_dropout=0.5,
    ),
    "nic": StepSettings(
        hidden_size=512, batch_size=64, clip_norm=5.0, input_dropout=0.3, output_dropout=0.5
    ),
}


class Steps:
    """An implementation at work."""

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps; a GPU may still be at them when this returns."""
        self.losses(count)

    def losses(self, count: int) -> list[float]:
        """Take `count` steps and give the mean loss a token of each, read after each."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on which data, where."""

    workload: Workload
    settings: StepSettings
    device: torch.device

    @property
    def data(self) -> TrainingData:
        """Loaded once a process."""
        return load_workload(self.workload)

    def precision(self) -> AbstractContextManager[None]:
        """Within it, what stays float32 beside bfloat16 is multiplied as TF32."""
        return float32_products(tf32=self.settings.dtype != "float32")

    @property
    def axes(self) -> Axes:
        """As figures on a GPU carry them."""
        settings = self.settings
        return {"dtype": settings.dtype, "H": settings.hidden_size, "B": settings.batch_size}

    @property
    def steps_an_epoch(self) -> int:
        """The last batch included."""
        return -(-len(self.data.dataset) // self.settings.batch_size)

    def order(self) -> BatchOrder:
        """The order of the captions, the same for every implementation."""
        captions, batch_size = len(self.data.dataset), self.settings.batch_size
        return BatchOrder(captions, batch_size=batch_size, seed=self.workload.seed)

    def model(self, backend: str) -> BaseCaptioner:
        """The captioner in training, with its first weights, uniform as Show and Tell's."""
        settings = self.settings
        with torch.random.fork_rng():
            torch.manual_seed(self.workload.seed)
            language_model = LanguageModel(
                vocab_size=self.data.vocab_size,
                embedding_dim=settings.hidden_size,
                hidden_size=settings.hidden_size,
                dropout=DropoutRates(settings.input_dropout, settings.output_dropout),
                backend=backend,
            )
            feature_dim = self.data.store.feature_dim
            model = Captioner(language_model=language_model, feature_dim=feature_dim)
            for parameter in model.parameters():
                torch.nn.init.uniform_(parameter, -0.08, 0.08)
        return model.to(self.device).train()

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """This package's."""
        rates: dict[str, Any] = {"lr": self.settings.lr, "weight_decay": self.settings.weight_decay}
        groups = parameter_groups(model, **rates, lr_by_prefix={})
        return make_optimizer(self.settings.optimizer, groups, **self.settings.arguments)

    def build(self, name: str) -> Steps:
        """PLAIN, GEMMS, "graph BACKEND" as one graph, or "eager BACKEND" or BACKEND as a loop."""
        if name in (PLAIN, GEMMS):
            return PlainSteps(self) if name == PLAIN else GemmSteps(self)
        if self.device.type == "cpu":
            keep_freed_memory()  # as scripts/train.py does
        kind, _, backend = name.rpartition(" ")
        return GraphSteps(self, backend) if kind == "graph" else EagerSteps(self, backend)


class PlainSteps(Steps):
    """Plain PyTorch: DataLoader, packed nn.LSTM, autocast, optimisers as torch makes them."""

    def __init__(self, training: Training) -> None:
        settings, data = training.settings, training.data
        self.half = training.device.type, settings.dtype == "bfloat16"
        model, loss_of = self._model(training)
        model.to(training.device).train()
        kind = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[settings.optimizer]
        common = {"lr": settings.lr, "weight_decay": settings.weight_decay, **settings.arguments}
        tokens, starts = data.dataset.store.tokens, data.dataset.store.starts
        captions = [part.tolist() for part in torch.tensor_split(tokens, starts[1:])]
        rows = data.dataset.image_rows.tolist()
        self.loop = plain_steps(
            model,
            kind(model.parameters(), **common),
            PlainCaptions(data.features.squeeze(1), rows, captions),
            caption_batches(training.order(), data.dataset),
            clip_norm=settings.clip_norm,
            clip_value=settings.clip_value,
            loss_of=loss_of,
        )

    def _model(self, training: Training) -> tuple[torch.nn.Module, Loss]:
        """The model with the weights of `training`, and its loss."""
        settings = training.settings
        weights = {
            name.replace("image_projection", "projection").removeprefix("language_model."): tensor
            for name, tensor in training.model("torch").named_parameters()
        }
        rates = (settings.input_dropout, settings.output_dropout)
        return PlainCaptioner(weights, rates), F.cross_entropy

    def losses(self, count: int) -> list[float]:
        """The loss of each of `count` steps."""
        device, half = self.half
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            return list(itertools.islice(self.loop, count))


class EagerSteps(Steps):
    """This package's step over batches, each packed on the host and copied to the device."""

    def __init__(self, training: Training, backend: str) -> None:
        self.model, self.order = training.model(backend), training.order()
        self.step, batches = self._step(
            training,
            model=self.model,
            optimizer=training.optimizer(self.model),
            average=None,
            settings=training.settings.trainer,
            total_steps=MOST_STEPS,
            device=training.device,
        )
        self.step.prepare()
        self.taken = self.tokens = 0  # steps, and tokens of the last batch
        self.running = torch.zeros((), dtype=torch.float64, device=training.device)
        self.batches = endless(self.order, batches)

    def _step(self, training: Training, **parts: Any) -> tuple[PlainStep | GraphStep, Any]:
        """The step, and the batches of an epoch in the order of `self.order`."""
        pinned = training.device.type == "cuda"
        loader = make_loader(training.data.dataset, self.order, workers=0, pin_memory=pinned)
        return PlainStep(**parts, world=World()), loader

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps; nothing is read from the device."""
        for batch in itertools.islice(self.batches, count):
            self.tokens = self.step([batch], self.taken, self.running)
            self.taken += 1

    def losses(self, count: int) -> list[float]:
        """The mean loss a token of each of `count` steps, read after each."""
        found = []
        for _ in range(count):
            before = float(self.running)
            self.steps(1)
            found.append((float(self.running) - before) / self.tokens)
        return found


class GraphSteps(EagerSteps):
    """The step as one graph; where the device is no GPU, the same code, not captured."""

    def _step(self, training: Training, **parts: Any) -> tuple[PlainStep | GraphStep, Any]:
        dataset, batch_size = training.data.dataset, training.settings.batch_size
        data = ResidentCaptions(
            dataset,
            batch_size=batch_size,
            features=training.data.features,
            device=training.device,
            capacities=token_capacities(dataset.tokens_per_row, batch_size, seed=self.order.seed),
        )
        return GraphStep(data, **parts), ResidentLoader(data, self.order)


class GemmSteps(Steps):
    """The GEMMs of one batch after another, and nothing else: there are no losses."""

    def __init__(self, training: Training) -> None:
        self.lengths = training.data.dataset.store.lengths
        self.batches = endless(training.order())
        self.gemms = Gemms(
            hidden=training.settings.hidden_size,
            vocab_size=training.data.vocab_size,
            feature_dim=training.data.store.feature_dim,
            device=training.device,
        )

    def losses(self, count: int) -> list[float]:
        """The GEMMs of `count` batches."""
        for rows in itertools.islice(self.batches, count):
            for call in self.gemms.calls(len(rows), int(self.lengths[torch.tensor(rows)].sum())):
                call()
        return []


class TimedSteps:
    """An implementation in a Worker: its steps timed there."""

    def __init__(self, name: str, training: Training, warm_up: int) -> None:
        self.training, self.taken = training, list[float]()
        with training.precision():
            self.steps = training.build(name)
            self.seconds(warm_up)

    def seconds(self, count: int) -> float:
        """Take `count` steps; the seconds a step."""
        started = time.perf_counter()
        self.taken += self.steps.losses(count)
        synchronize(self.training.device)
        return (time.perf_counter() - started) / count

    def result(self) -> tuple[list[float], int, int]:
        """The losses of all steps, the process's peak memory and what it holds now, in bytes."""
        return self.taken, peak_bytes(), own_bytes()
