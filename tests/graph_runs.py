"""A small captioner's trainer, of the plain kind or in the form of a CUDA graph, and its losses.

Needs nothing but torch and numpy, so that it also runs on a bare machine with a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import BatchOrder, CaptionDataset, make_loader
from captioner.data.resident import ResidentCaptions, ResidentLoader, token_capacities
from captioner.data.vocabulary import Vocabulary
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.trainer import Trainer

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "the", "grass", "red", "blue"]
VOCABULARY = Vocabulary(WORDS, counts=[1] * (4 + len(WORDS)))
IMAGES = 23  # of two or three captions
FEATURES = torch.randn(IMAGES, 1, 6, generator=torch.Generator().manual_seed(11))
CPU = torch.device("cpu")


def make_images() -> list[CaptionedImage]:
    """Captions of many lengths; every seventh is far longer than the others."""
    generator = torch.Generator().manual_seed(3)
    number = itertools.count()

    def caption() -> str:
        length = 14 if next(number) % 7 == 0 else 1 + int(torch.randint(5, (), generator=generator))
        picked = torch.randint(len(WORDS), (length,), generator=generator)
        return " ".join(WORDS[k] for k in picked.tolist())

    return [
        CaptionedImage(f"{k}.jpg", Path(f"{k}.jpg"), tuple(caption() for _ in range(2 + k % 2)), k)
        for k in range(IMAGES)
    ]


def make_dataset(by_image: bool = False) -> CaptionDataset:
    return CaptionDataset(
        make_images(),
        vocabulary=VOCABULARY,
        source=lambda rows: FEATURES[rows],
        max_length=20,
        by_image=by_image,
    )


def make_data(
    dataset: CaptionDataset, order: BatchOrder, *, device: torch.device = CPU
) -> ResidentCaptions:
    # Half of the batches fit the usual capacity: the other one is needed, too.
    capacities = token_capacities(dataset.tokens_per_row, order.batch_size, seed=1, quantile=0.5)
    return ResidentCaptions(
        dataset,
        batch_size=order.batch_size,
        features=FEATURES,
        device=device,
        capacities=capacities,
    )


def make_trainer(
    folder: Path,
    *,
    graph: bool,
    optimizer: str = "adam",
    dropout: float = 0.0,
    by_image: bool = False,
    device: torch.device = CPU,
    backend: str = "auto",
    precise: bool = False,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(0)
    language_model = LanguageModel(
        vocab_size=len(VOCABULARY),
        embedding_dim=8,
        hidden_size=8,
        num_layers=2,
        dropout=DropoutRates(dropout, dropout, dropout, embedding=dropout, recurrent=dropout),
        backend=backend,
    )
    model = Captioner(language_model=language_model, feature_dim=6, feature_norm="none").to(device)
    if precise:
        model.double().image_projection.register_forward_pre_hook(lambda _, x: (x[0].double(),))
    dataset = make_dataset(by_image)
    order = BatchOrder(len(dataset), batch_size=5 if by_image else 8, seed=5)
    all_settings = TrainerSettings(**{"epochs": 3, "log_steps": 2, **settings})
    data = make_data(dataset, order, device=device)
    groups = parameter_groups(
        model, lr=0.01, weight_decay=0.01, lr_by_prefix={"image_projection": 0.003}
    )
    setup = TrainingSetup(
        model=model,
        optimizer=make_optimizer(optimizer, groups),
        loader=ResidentLoader(data, order) if graph else make_loader(dataset, order, workers=0),
        order=order,
        validate=lambda step: {"BLEU-4": float(step)},
        texts={},
        data=data if graph else None,
    )
    return Trainer(
        setup,
        folder=folder,
        settings=all_settings,
        device=device,
        reporting=Reporting(show_progress=False),
    )


def losses(trainer: Trainer, steps: int) -> list[float]:
    """The loss a token of each step, epoch after epoch."""
    curve = []
    batches = epochs(trainer)
    trainer.model.train()
    for step in range(steps):
        loss = torch.zeros((), dtype=torch.float64, device=trainer.device)
        tokens = trainer.step(next(batches), step, loss)
        curve.append(float(loss) / tokens)
    return curve


def epochs(trainer: Trainer) -> Iterator[list[Any]]:
    size = trainer.settings.accumulation
    for epoch in itertools.count():
        trainer.order.epoch, trainer.order.position = epoch, 0
        batches = iter(trainer.loader)
        while group := list(itertools.islice(batches, size)):
            yield group
