"""suite=train: this package's training step beside the plain PyTorch loop, and its peak memory.

Shapes: n images, F image feature, B captions a batch, H hidden (= E embedding).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from captioner.benchmarks.plain_loop import PlainCaptioner, PlainCaptions, PlainLoop
from captioner.benchmarks.record import Axes, Figure, Requirement, SuiteResult
from captioner.benchmarks.timing import Spread, interleaved, paired_ratio
from captioner.benchmarks.train_memory import peak_memory_of_training
from captioner.benchmarks.workload import build_vocabulary, captioned_images, random_features
from captioner.build import build_captioner
from captioner.config import DecoderConfig
from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.feature_store import FeatureStore
from captioner.data.vocabulary import Vocabulary
from captioner.image_features import CachedFeatures
from captioner.models.captioner import Captioner
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.trainer import Trainer, TrainerSettings

LR, CLIP_NORM, MAX_LENGTH = 1e-3, 5.0, 50
MEMORY_LIMIT = 1.5e9  # bytes
SAME_LOSS = 1e-3  # nats a token: after a few steps of Adam, which blows roundings up
# Names of the same weights: the peer's, then the captioner's.
PARTS = {
    "projection.": "image_projection.",
    "embedding.": "language_model.embedding.",
    "lstm.": "language_model.lstm.",
    "output.": "language_model.output.",
}


def train_suite(
    *,
    images: int,
    feature_dim: int,
    hidden_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    backends: Sequence[str],
    steps: int,
    memory: bool,
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """Time blocks of `steps` steps of each pair of hidden and batch size; peak memory on a CPU."""
    captioned = captioned_images(images, data_root=data_root, seed=seed)
    vocabulary = build_vocabulary(captioned)
    store = random_features(captioned, feature_dim, seed=seed)
    figures: list[Figure] = []
    requirements: list[Requirement] = []
    for hidden, batch in zip(hidden_sizes, batch_sizes, strict=True):
        sides = _Sides(captioned, vocabulary, store, hidden, batch, device, seed)
        timed, compared = sides.measure(backends, steps=steps, repeats=repeats)
        figures += timed
        requirements += compared
    if memory and device.type == "cpu":
        peak = Spread((peak_memory_of_training(captioned, data_root=data_root, seed=seed),))
        figures.append(Figure("peak memory of a run", "captioner", "MB", peak.map(_megabytes)))
        requirements.append(
            Requirement("peak memory", "MB", peak.map(_megabytes), at_most=_megabytes(MEMORY_LIMIT))
        )
    settings = {
        "images": images,
        "captions": sum(len(image.captions) for image in captioned),
        "data": "synthetic" if data_root is None else "flickr8k",
        "vocabulary": len(vocabulary),
        "feature_dim": feature_dim,
        "steps_a_repeat": steps,
        "lr": LR,
        "clip_norm": CLIP_NORM,
        "seed": seed,
    }
    return SuiteResult(settings, figures, requirements)


def _megabytes(count: float) -> float:
    return count / 1e6


class _Sides:
    """Both sides of one model size: same first weights, same batches in the same order."""

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        vocabulary: Vocabulary,
        store: FeatureStore,
        hidden_size: int,
        batch_size: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.vocabulary, self.store, self.device, self.seed = vocabulary, store, device, seed
        self.hidden_size, self.batch_size = hidden_size, batch_size
        rows = store.rows([image.name for image in images])
        self.dataset = CaptionDataset(
            images,
            vocabulary=vocabulary,
            source=CachedFeatures(store, rows),
            max_length=MAX_LENGTH,
        )

    def measure(
        self, backends: Sequence[str], *, steps: int, repeats: int
    ) -> tuple[list[Figure], list[Requirement]]:
        plain = self._plain_loop()
        own = {backend: self._own_loop(backend) for backend in backends}
        loops: dict[str, PlainLoop | OwnLoop] = {"plain PyTorch": plain, **own}
        calls = {name: lambda loop=loop: loop.steps(steps) for name, loop in loops.items()}
        taken = interleaved(calls, repeats=repeats, device=self.device)
        axes: Axes = {"H": self.hidden_size, "B": self.batch_size}
        a_pass = -(-len(self.dataset) // self.batch_size)
        figures = []
        for side, spread in taken.items():
            step = spread.map(lambda seconds: seconds / steps)
            figures.append(Figure("a step", side, "ms", step.map(lambda s: 1e3 * s), axes))
            figures.append(Figure("a pass", side, "s", step.map(lambda s: a_pass * s), axes))
        requirements = []
        for backend, loop in own.items():
            ratio = paired_ratio(taken["plain PyTorch"], taken[backend])
            what = f"speed of {backend} to plain PyTorch"
            requirements.append(Requirement(what, "times", ratio, at_least=1.0, axes=axes))
            apart = max(abs(a - b) for a, b in zip(plain.losses[:steps], loop.losses, strict=False))
            what = f"loss of {backend} apart from plain PyTorch's"
            requirements.append(
                Requirement(what, "nats a token", Spread((apart,)), at_most=SAME_LOSS, axes=axes)
            )
        return figures, requirements

    def _order(self) -> BatchOrder:
        return BatchOrder(len(self.dataset), batch_size=self.batch_size, seed=self.seed)

    def _model(self, backend: str) -> Captioner:
        config = DecoderConfig(
            embedding_dim=self.hidden_size, hidden_size=self.hidden_size, backend=backend
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return build_captioner(
                config, vocab_size=len(self.vocabulary), feature_dim=self.store.feature_dim
            )

    def _own_loop(self, backend: str) -> OwnLoop:
        return OwnLoop(self._model(backend), self.dataset, self._order(), device=self.device)

    def _plain_loop(self) -> PlainLoop:
        model = PlainCaptioner(
            vocab_size=len(self.vocabulary),
            feature_dim=self.store.feature_dim,
            embedding_dim=self.hidden_size,
            hidden_size=self.hidden_size,
        )
        weights = self._model("torch").state_dict()
        model.load_state_dict(
            {name: weights[_own_name(name)] for name in model.state_dict()}, strict=True
        )
        tokens, starts = self.dataset.store.tokens, self.dataset.store.starts.tolist()
        captions = [part.tolist() for part in torch.tensor_split(tokens, starts[1:])]
        features = torch.from_numpy(self.store.features[:, 0])
        dataset = PlainCaptions(features, self.dataset.image_rows.tolist(), captions)
        return PlainLoop(
            model, dataset, Endless(self._order()), lr=LR, clip_norm=CLIP_NORM, device=self.device
        )


def _own_name(name: str) -> str:
    prefix = next(prefix for prefix in PARTS if name.startswith(prefix))
    return PARTS[prefix] + name[len(prefix) :]


class Endless:
    """The batches of one epoch after another."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            self.order.epoch = epoch
            yield from self.order


class OwnLoop:
    """This package's trainer and loader, taken a few steps at a time as Trainer.run takes them."""

    def __init__(
        self, model: Captioner, dataset: CaptionDataset, order: BatchOrder, *, device: torch.device
    ) -> None:
        groups = parameter_groups(model, lr=LR, weight_decay=0.0, lr_by_prefix={})
        model.to(device).train()
        loader = make_loader(dataset, order, workers=0, pin_memory=device.type == "cuda")
        self.trainer = Trainer(
            model=model,
            optimizer=make_optimizer("adam", groups),
            loader=loader,
            order=order,
            validate=lambda step: {},
            folder=Path(),
            settings=TrainerSettings(epochs=1, clip_norm=CLIP_NORM),
            texts={},
            device=device,
            show_progress=False,
        )
        self.loader, self.order = loader, order
        self.batches = self._epochs()
        self.losses: list[float] = []

    def _epochs(self) -> Iterator[object]:
        for epoch in itertools.count():
            self.order.epoch = epoch
            yield from self.loader

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps."""
        for _ in range(count):
            loss, tokens = self.trainer._step([next(self.batches)])  # type: ignore[list-item]
            self.losses.append(float(loss) / tokens)
