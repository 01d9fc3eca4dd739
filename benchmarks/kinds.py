"""suite=kinds: vanilla RNN, GRU and LSTM on one text, with equal parameters and equal time.

How many windows fit into the time is measured first, so that every kind's learning rate falls to
zero at its end; the rate is the one of `lrs` that is best in a quarter of the time with the first
seed. Runs lie under `folder` and continue from there when the suite is started again.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.settings import KindsBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import Spread
from benchmarks.worker import ROOT
from captioner import config as schema
from captioner.build.models import build_language_model
from captioner.build.trainer import build_trainer
from captioner.commands.cli import compose_config
from captioner.files import read_json, write_json

EPOCHS = 5  # validations in a run
TIMED_WINDOWS = 20
VOCABULARY = 69  # of tiny Shakespeare, for the width
TEXT = "tiny Shakespeare, last 10 % for validation"
KINDS = ("rnn_tanh", "gru", "lstm")
UNITS = {"validation loss": "nats a character", "training": "s", "characters read": "characters"}


def kinds_suite(settings: KindsBenchmark, run: Run | None = None) -> SuiteResult:
    """Validation loss of every kind, one value a seed, with its parameters, time and rate."""
    kept = ("minutes", "seeds", "lrs", "dropout")
    same = {name: getattr(settings, name) for name in kept}
    sizes = {"B": settings.batch_size, "T": settings.window}
    result = SuiteResult({"text": TEXT, **same, **sizes})
    layers = settings.num_layers
    for kind, width in equal_widths(settings.hidden_size, layers).items():
        train = partial(_train, settings, kind, width)
        first = {lr: train(settings.seeds[0], lr, 0.25) for lr in settings.lrs}
        lr = min(first, key=lambda rate: first[rate]["validation loss"])
        found = [train(seed, lr, 1.0) for seed in settings.seeds]
        axes: Axes = {"H": width, "L": layers, "parameters": parameters(kind, width, layers)}
        for what, unit in UNITS.items():
            result.add(what, kind, unit, Spread(tuple(one[what] for one in found)), axes)
        result.add("learning rate", kind, "", lr, axes)
    return result


def parameters(kind: str, hidden_size: int, num_layers: int) -> int:
    """How many parameters a model of that width has."""
    config = schema.ModelConfig(embedding_dim=64, hidden_size=hidden_size, num_layers=num_layers)
    with torch.device("meta"):
        model = build_language_model(config, vocab_size=VOCABULARY, rnn=schema.RnnConfig(kind=kind))
    return sum(one.numel() for one in model.parameters())


def equal_widths(lstm_hidden: int, num_layers: int) -> dict[str, int]:
    """For each kind the width, a multiple of 8, whose parameters are nearest to the LSTM's."""
    wanted = parameters("lstm", lstm_hidden, num_layers)
    widths = range(lstm_hidden, 3 * lstm_hidden, 8)
    return {
        kind: min(widths, key=lambda h: abs(parameters(kind, h, num_layers) - wanted))
        for kind in KINDS
    }


def _train(
    settings: KindsBenchmark, kind: str, width: int, seed: int, lr: float, share: float
) -> dict[str, float]:
    """Best validation loss, seconds of training and characters read in a `share` of the time."""
    speed = Path(settings.folder) / f"{kind}_speed.json"
    if not speed.exists():  # measured once, so that a run that is continued is the same run
        timed = _trainer(settings, kind, width, f"{kind}_speed", TIMED_WINDOWS, "trainer.epochs=1")
        write_json(speed, timed.run()[0]["seconds"] / TIMED_WINDOWS)
    windows = max(1, int(60 * settings.minutes * share / float(read_json(speed)) / EPOCHS))
    name = f"{kind}_{seed}_{lr:g}_{share:g}"
    run = (f"seed={seed}", f"optimizer.lr={lr}", f"trainer.epochs={EPOCHS}")
    history = _trainer(settings, kind, width, name, windows, *run).run()
    return {
        "validation loss": min(one["loss"] for one in history),
        "training": sum(one["seconds"] for one in history),
        "characters read": float(EPOCHS * windows * settings.batch_size * settings.window),
    }


def _trainer(
    settings: KindsBenchmark, kind: str, width: int, name: str, windows: int, *more: str
) -> Any:
    path = [] if settings.path is None else [f"data.path={settings.path}"]
    dropout = settings.dropout
    overrides = [
        *("encoder=none", "resume=true", "name=kinds", "data=tiny_shakespeare", *path),
        *(f"run_dir={Path(settings.folder) / name}", f"rnn.kind={kind}", "model.init=xavier"),
        *("model.embedding_dim=64", f"model.hidden_size={width}"),
        *(f"model.num_layers={settings.num_layers}", f"model.layer_dropout={dropout}"),
        *(f"model.output_dropout={dropout}", "optimizer.schedule=cosine"),
        *("optimizer.warmup_steps=50", "optimizer.clip_norm=1", "trainer.best_metric=loss"),
        *(f"trainer.batch_size={settings.batch_size}", f"trainer.window={settings.window}"),
        *(f"trainer.epoch_windows={windows}", "trainer.progress=false"),
        *("vocabulary.min_count=1", *more),
    ]
    return build_trainer(compose_config("train", overrides, configs=ROOT / "configs"))
