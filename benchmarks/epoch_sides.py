"""The sides of suite=epoch: this package's step, the plain loop, and the products alone.

Shapes: B captions a batch, N tokens to predict, E embedding, H hidden, V vocabulary, F image
feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.epoch_settings import StepSettings
from benchmarks.plain_loop import PlainCaptioner, PlainCaptions, PlainLoop
from benchmarks.side_process import Side
from benchmarks.workload import (
    MAX_LENGTH,
    Endless,
    build_vocabulary,
    captioned_images,
    random_features,
)
from captioner.build.components import build_captioner
from captioner.config import ModelConfig
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.features.source import CachedFeatures
from captioner.features.store import FeatureStore
from captioner.models.captioner import Captioner
from captioner.training.memory import keep_freed_memory
from captioner.training.optimisation import OPTIMIZERS, parameter_groups
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.trainer import Trainer

PLAIN, COMPILED, PRODUCTS = "plain PyTorch", "compiled plain PyTorch", "its products alone"
# Names of the same weights: the peer's, then the captioner's.
PARTS = {
    "projection.": "image_projection.",
    "embedding.": "language_model.embedding.",
    "lstm.": "language_model.lstm.",
    "output.": "language_model.output.",
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The data of all sides: `images` of Flickr8k in `data_root`, or as many drawn ones.

    features: an .npy file [at least images, 1, F], memory-mapped; None draws them. vocabulary: at
    least so many words, of which the captions may not have all.
    """

    images: int
    feature_dim: int
    data_root: str | None
    seed: int
    device: torch.device
    features: str | None = None
    vocabulary: int = 0


def build_side(name: str, workload: Workload, settings: StepSettings) -> Side:
    """A side by its name; any but the three above is a backend of this package's own step.

    All have the same first weights and the same batches in the same order.
    """
    parts = Parts(workload, settings)
    if name == PRODUCTS:
        return Products(parts.dataset, parts.order(), settings, parts.vocab_size, workload)
    if name in (PLAIN, COMPILED):
        return parts.plain_loop(compiled=name == COMPILED)
    if workload.device.type == "cpu":
        keep_freed_memory()  # as scripts/train.py does
    return parts.own_loop(name)


class Parts:
    """What the sides are made of."""

    def __init__(self, workload: Workload, settings: StepSettings) -> None:
        self.workload, self.settings = workload, settings
        images = captioned_images(workload.images, data_root=workload.data_root, seed=workload.seed)
        vocabulary = build_vocabulary(images)
        self.vocab_size = max(len(vocabulary), workload.vocabulary)
        if workload.features is None:
            self.store = random_features(images, workload.feature_dim, seed=workload.seed)
        else:
            mapped = np.load(workload.features, mmap_mode="r")[: len(images)]
            self.store = FeatureStore([image.name for image in images], mapped)
        rows = self.store.rows([image.name for image in images])
        self.dataset = CaptionDataset(
            images,
            vocabulary=vocabulary,
            source=CachedFeatures(self.store, rows),
            max_length=MAX_LENGTH,
        )

    def order(self) -> BatchOrder:
        """The batches' order, the same for every side."""
        return BatchOrder(
            len(self.dataset), batch_size=self.settings.batch_size, seed=self.workload.seed
        )

    def own_loop(self, backend: str) -> OwnLoop:
        """This package's trainer."""
        return OwnLoop(
            self._model(backend),
            self.dataset,
            self.order(),
            settings=self.settings,
            device=self.workload.device,
        )

    def plain_loop(self, *, compiled: bool = False) -> PlainLoop:
        """The peer."""
        settings = self.settings
        model = PlainCaptioner(
            vocab_size=self.vocab_size,
            feature_dim=self.store.feature_dim,
            embedding_dim=settings.hidden_size,
            hidden_size=settings.hidden_size,
            input_dropout=settings.input_dropout,
            output_dropout=settings.output_dropout,
        )
        weights = self._model("torch").state_dict()
        model.load_state_dict(
            {name: weights[_own_name(name)] for name in model.state_dict()}, strict=True
        )
        tokens, starts = self.dataset.store.tokens, self.dataset.store.starts.tolist()
        captions = [part.tolist() for part in torch.tensor_split(tokens, starts[1:])]
        features = torch.from_numpy(self.store.features[:, 0])
        return PlainLoop(
            model,
            PlainCaptions(features, self.dataset.image_rows.tolist(), captions),
            Endless(self.order()),
            optimizer=self._plain_optimizer(),
            clip_norm=settings.clip_norm,
            clip_value=settings.clip_value,
            device=self.workload.device,
            compiled=compiled,
        )

    def _plain_optimizer(self) -> Callable[..., torch.optim.Optimizer]:
        settings = self.settings
        kinds = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
        return lambda parameters: kinds[settings.optimizer](
            parameters, lr=settings.lr, weight_decay=settings.weight_decay, **settings.arguments
        )

    def _model(self, backend: str) -> Captioner:
        settings = self.settings
        config = ModelConfig(
            embedding_dim=settings.hidden_size,
            hidden_size=settings.hidden_size,
            input_dropout=settings.input_dropout,
            output_dropout=settings.output_dropout,
            backend=backend,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.workload.seed)
            return build_captioner(
                config, vocab_size=self.vocab_size, feature_dim=self.store.feature_dim
            )


def _own_name(name: str) -> str:
    prefix = next(prefix for prefix in PARTS if name.startswith(prefix))
    return PARTS[prefix] + name[len(prefix) :]


class OwnLoop:
    """This package's trainer and loader, taken a few steps at a time as Trainer.run takes them."""

    def __init__(
        self,
        model: Captioner,
        dataset: CaptionDataset,
        order: BatchOrder,
        *,
        settings: StepSettings,
        device: torch.device,
    ) -> None:
        groups = parameter_groups(
            model, lr=settings.lr, weight_decay=settings.weight_decay, lr_by_prefix={}
        )
        model.to(device).train()
        loader = make_loader(dataset, order, workers=0, pin_memory=device.type == "cuda")
        self.trainer = Trainer(
            TrainingSetup(
                model=model,
                optimizer=OPTIMIZERS[settings.optimizer](groups, **settings.arguments),
                loader=loader,
                order=order,
                validate=lambda step: {},
                texts={},
            ),
            folder=Path(),
            settings=TrainerSettings(
                epochs=1, clip_norm=settings.clip_norm, clip_value=settings.clip_value
            ),
            device=device,
            reporting=Reporting(show_progress=False),
        )
        self.loader, self.order = loader, order
        self.batches = self._epochs()
        self.losses: list[float] = []

    def _epochs(self) -> Iterator[Any]:
        for epoch in itertools.count():
            self.order.epoch = epoch
            yield from self.loader

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps."""
        for _ in range(count):
            loss = torch.zeros((), dtype=torch.float64, device=self.trainer.device)
            tokens = self.trainer.step([next(self.batches)], self.trainer.progress.step, loss)
            self.trainer.progress.step += 1
            self.losses.append(float(loss) / tokens)


class Products:
    """The matrix products of the plain loop's step, each as one of torch's, and nothing else.

    A floor for a step that multiplies every token's embedding; one that shares words, or whose own
    products are faster, can pass below it.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        order: BatchOrder,
        settings: StepSettings,
        vocab_size: int,
        workload: Workload,
    ) -> None:
        self.dataset, self.batches, self.device = dataset, iter(Endless(order)), workload.device
        self.hidden, self.feature_dim, self.vocab_size = (
            settings.hidden_size, workload.feature_dim, vocab_size,
        )  # fmt: skip
        self.losses: list[float] = []
        self._numbers: dict[str, Tensor] = {}

    def steps(self, count: int) -> None:
        """The products of `count` batches."""
        for _ in range(count):
            rows = torch.tensor(next(self.batches))
            self._step(len(rows), int(self.dataset.store.lengths[rows].sum()))

    def _step(self, batch: int, tokens: int) -> None:
        h, v, f, n = self.hidden, self.vocab_size, self.feature_dim, tokens
        self._linear("image", batch, f, h, wants_input=False)
        self._linear("weight_ih", n + batch, h, 4 * h)
        self._linear("weight_hh", n, h, 4 * h)  # the image's step has no state yet
        self._linear("vocabulary", n, h, v)

    def _linear(
        self, name: str, rows: int, inputs: int, outputs: int, *, wants_input: bool = True
    ) -> None:
        """Forward and the gradients of one linear layer."""
        x, y = self._matrix(f"{name} x", rows, inputs), self._matrix(f"{name} y", rows, outputs)
        weight = self._matrix(f"{name} w", outputs, inputs)
        torch.mm(x, weight.t(), out=self._matrix(f"{name} out", rows, outputs))
        torch.mm(y.t(), x, out=self._matrix(f"{name} dw", outputs, inputs))
        if wants_input:
            torch.mm(y, weight, out=self._matrix(f"{name} dx", rows, inputs))

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """Memory kept from step to step, its numbers drawn once."""
        kept = self._numbers.get(name)
        if kept is None or len(kept) < rows:
            drawn = torch.rand(rows + rows // 2, columns, device=self.device)
            kept = self._numbers[name] = drawn
        return kept[:rows]
