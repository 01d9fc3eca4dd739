"""suite=kinds: vanilla RNN, GRU and LSTM on one text, with equal parameters and equal time.

Each kind's layers are as wide as gives it the LSTM's number of parameters. How many windows fit
into the time is measured first, so that every kind's learning rate falls to zero at its end; the
rate is the one of `lrs` that is best in a quarter of the time with the first seed. Every run lies
in a folder of its own under `folder` and goes on from there when the suite is started again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.record import Axes, Figure, SuiteResult
from benchmarks.timing import Spread
from captioner import config as schema
from captioner.build.components import build_language_model
from captioner.build.trainer import build_trainer
from captioner.files import read_json, write_json

EPOCHS = 5  # validations in a run
TIMED_WINDOWS = 20
VOCABULARY = 69  # of tiny Shakespeare, for the width
KINDS = ("rnn_tanh", "gru", "lstm")


def kinds_suite(
    *,
    path: str | None,
    folder: str,
    hidden_size: int,
    num_layers: int,
    minutes: float,
    seeds: list[int],
    lrs: list[float],
    batch_size: int,
    window: int,
    dropout: float,
) -> SuiteResult:
    """Validation loss of every kind, one value a seed, with its parameters, time and rate."""
    figures: list[Figure] = []
    for kind, width in equal_widths(hidden_size, num_layers).items():
        run = _Runs(
            kind, width, num_layers, path, Path(folder), batch_size, window, dropout, minutes
        )
        lr = min(lrs, key=lambda rate: run(seeds[0], rate, 0.25)["loss"])
        found = [run(seed, lr, 1.0) for seed in seeds]
        axes: Axes = {
            "H": width,
            "L": num_layers,
            "parameters": parameters(kind, width, num_layers),
        }

        def spread(name: str, found: list[dict[str, float]] = found) -> Spread:
            return Spread(tuple(one[name] for one in found))

        figures += [
            Figure("validation loss", kind, "nats a character", spread("loss"), axes),
            Figure("training", kind, "s", spread("seconds"), axes),
            Figure("characters read", kind, "characters", spread("characters"), axes),
            Figure("learning rate", kind, "", Spread((lr,)), axes),
        ]
    settings = {
        "text": "tiny Shakespeare, last 10 % for validation", "minutes": minutes, "seeds": seeds,
        "lrs": lrs, "B": batch_size, "T": window, "dropout": dropout,
    }  # fmt: skip
    return SuiteResult(settings, figures, [])


def parameters(kind: str, hidden_size: int, num_layers: int) -> int:
    """How many parameters a model of that width has."""
    decoder = schema.ModelConfig(embedding_dim=64, hidden_size=hidden_size, num_layers=num_layers)
    with torch.device("meta"):
        model = build_language_model(
            decoder, vocab_size=VOCABULARY, rnn=schema.RnnConfig(kind=kind)
        )
    return sum(one.numel() for one in model.parameters())


def equal_widths(lstm_hidden: int, num_layers: int) -> dict[str, int]:
    """For each kind the width, a multiple of 8, whose parameters are nearest to the LSTM's."""
    wanted = parameters("lstm", lstm_hidden, num_layers)
    widths = range(lstm_hidden, 3 * lstm_hidden, 8)
    return {
        kind: min(widths, key=lambda h: abs(parameters(kind, h, num_layers) - wanted))
        for kind in KINDS
    }


class _Runs:
    """Training runs of one kind: called with seed, learning rate and share of the time."""

    def __init__(
        self, kind: str, width: int, num_layers: int, path: str | None, folder: Path,
        batch_size: int, window: int, dropout: float, minutes: float,
    ) -> None:  # fmt: skip
        self.kind, self.width, self.num_layers, self.path = kind, width, num_layers, path
        self.folder, self.batch_size, self.window = folder, batch_size, window
        self.dropout, self.minutes = dropout, minutes

    def __call__(self, seed: int, lr: float, share: float) -> dict[str, float]:
        """The run's best validation loss, its seconds of training, and the characters it read."""
        windows = max(1, int(60 * self.minutes * share / self.seconds_a_window() / EPOCHS))
        name = f"{self.kind}_{seed}_{lr:g}_{share:g}"
        history = build_trainer(self._config(name, seed, lr, EPOCHS, windows)).run()
        return {
            "loss": min(one["loss"] for one in history),
            "seconds": sum(one["seconds"] for one in history),
            "characters": float(EPOCHS * windows * self.batch_size * self.window),
        }

    def seconds_a_window(self) -> float:
        """Measured once and kept, so that a run that is taken up again is the same run."""
        record = self.folder / f"{self.kind}_speed.json"
        if not record.exists():
            config = self._config(f"{self.kind}_speed", 0, 1e-3, 1, TIMED_WINDOWS)
            (only,) = build_trainer(config).run()
            write_json(record, only["seconds"] / TIMED_WINDOWS)
        return float(read_json(record))

    def _config(
        self, name: str, seed: int, lr: float, epochs: int, windows: int
    ) -> schema.TrainConfig:
        data = schema.TextData(source="tiny_shakespeare", path=self.path)
        decoder: dict[str, Any] = {
            "layer_dropout": self.dropout, "output_dropout": self.dropout, "init": "xavier"
        }  # fmt: skip
        return schema.TrainConfig(
            name="kinds",
            seed=seed,
            run_dir=str(self.folder / name),
            resume=True,
            data=data,
            vocabulary=schema.VocabularyConfig(min_count=1),
            encoder=schema.EncoderConfig(kind="none", name="none", weights="none"),
            rnn=schema.RnnConfig(kind=self.kind),
            model=schema.ModelConfig(
                embedding_dim=64, hidden_size=self.width, num_layers=self.num_layers, **decoder
            ),
            optimizer=schema.OptimizerConfig(
                lr=lr, schedule="cosine", warmup_steps=50, clip_norm=1.0
            ),
            trainer=schema.TrainerConfig(
                epochs=epochs, batch_size=self.batch_size, window=self.window,
                epoch_windows=windows, best_metric="loss", progress=False,
            ),
            generation=schema.GenerationConfig(),
        )  # fmt: skip
