"""The sides of the epoch suite on a GPU: the loop that everybody writes, and the step as one graph.

Shapes: n images, C captions, B captions a batch, E = H embedding and hidden, F image feature, V
vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from benchmarks.epoch_data import DrawnCaptions
from benchmarks.plain_loop import PlainCaptioner, PlainCaptions, PlainLoop
from benchmarks.workload import Endless
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel

PLAIN = "plain PyTorch"
LR, CLIP_NORM = 1e-3, 5.0
DTYPES = ("bfloat16", "tf32", "float32")  # what products are computed in


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """A side, and the step that all sides take: Adam, clipped, no dropout unless `dropout`.

    side: PLAIN, or this package's step with a backend of the LSTM: "graph persistent" for the step
    as one graph, "eager torch" for the loop over batches.
    """

    side: str
    batch_size: int
    hidden_size: int = 512
    dtype: str = "bfloat16"
    dropout: float = 0.0
    seed: int = 0

    @property
    def way(self) -> str:
        """PLAIN, eager or graph."""
        return PLAIN if self.side == PLAIN else self.side.split()[0]

    @property
    def backend(self) -> str:
        """Of the LSTM; PLAIN has torch's."""
        return "torch" if self.side == PLAIN else self.side.split()[-1]


class Passes(Protocol):
    """A side at work."""

    def steps(self, count: int) -> None:
        """Take `count` optimiser steps; a GPU may still be at them when this returns."""

    def losses(self, count: int) -> list[float]:
        """Take `count` steps and give the mean loss a token of each."""


@contextmanager
def float32_products(dtype: str) -> Iterator[None]:
    """Within it, products of float32 are exact ("float32") or TF32, on CUDA."""
    parts: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee" if dtype == "float32" else "tf32"
    try:
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def build_model(settings: PassSettings, data: DrawnCaptions) -> Captioner:
    """The captioner with its first weights, uniform as Show and Tell's."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        language_model = LanguageModel(
            vocab_size=len(data.vocabulary),
            embedding_dim=settings.hidden_size,
            hidden_size=settings.hidden_size,
            dropout=DropoutRates(settings.dropout, settings.dropout),
            backend=settings.backend,
        )
        model = Captioner(language_model=language_model, feature_dim=data.features.shape[2])
        for parameter in model.parameters():
            torch.nn.init.uniform_(parameter, -0.08, 0.08)
    return model


# The same weights under the names of the loop that everybody writes.
PLAIN_NAMES = {
    "image_projection.": "projection.",
    "language_model.embedding.": "embedding.",
    "language_model.lstm.": "lstm.",
    "language_model.output.": "output.",
}


class PlainPasses:
    """Plain PyTorch: DataLoader, packed nn.LSTM, autocast, Adam as torch makes it by default."""

    def __init__(self, settings: PassSettings, data: DrawnCaptions, device: torch.device) -> None:
        self.device, self.half = device, settings.dtype == "bfloat16"
        model = PlainCaptioner(
            vocab_size=len(data.vocabulary),
            feature_dim=data.features.shape[2],
            embedding_dim=settings.hidden_size,
            hidden_size=settings.hidden_size,
            input_dropout=settings.dropout,
            output_dropout=settings.dropout,
        )
        weights = dict(_renamed(build_model(settings, data)))
        model.load_state_dict(weights)
        store, rows = data.dataset.store, data.dataset.image_rows.tolist()
        captions = [part.tolist() for part in torch.tensor_split(store.tokens, store.starts[1:])]
        self.loop = PlainLoop(
            model,
            PlainCaptions(data.features[:, 0], rows, captions),
            Endless(data.order(settings.batch_size, seed=settings.seed)),
            optimizer=functools.partial(torch.optim.Adam, lr=LR),
            clip_norm=CLIP_NORM,
            clip_value=None,
            device=device,
        )

    def steps(self, count: int) -> None:
        """Optimiser steps, the loss of each read as such loops do."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            self.loop.steps(count)

    def losses(self, count: int) -> list[float]:
        """The loss of each of `count` steps."""
        self.steps(count)
        return self.loop.losses[-count:]


def _renamed(model: Captioner) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        for own, plain in PLAIN_NAMES.items():
            if name.startswith(own):
                yield plain + name.removeprefix(own), tensor
