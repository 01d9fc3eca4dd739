"""Schemas of the optimiser and of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from captioner.checks import in_range, one_of, positive
from captioner.errors import ConfigError
from captioner.training.optimisation import OPTIMIZERS, SCHEDULES

TEXT_METRICS = ("loss", "perplexity", "bits_per_character", "bits_per_byte")


@dataclass
class OptimizerConfig:
    """The optimiser, its schedule and clipping; betas for adam(w), alpha for rmsprop."""

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, tuple(OPTIMIZERS))
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        for key in ("lr", "eps", "clip_norm", "clip_value"):
            positive(f"optimizer.{key}", getattr(self, key))
        if len(self.betas) != 2:
            raise ConfigError(f"optimizer.betas must be two numbers, got {list(self.betas)}")
        for value in (*self.betas, self.alpha, self.momentum):
            in_range("optimizer.betas, alpha and momentum", value, 0, 0.999999)
        in_range("optimizer.weight_decay", self.weight_decay, 0)
        in_range("optimizer.warmup_steps", self.warmup_steps, 0)


@dataclass
class TrainerConfig:
    """The loop; see training/trainer.py.

    batch_size counts captions, or with batch_by=picture pictures with all their captions, which a
    trained encoder then computes once; of a text, streams that are read side by side, `window`
    tokens a step, and an epoch is `epoch_windows` windows (null: the whole text).
    precision is float32 or bf16 (autocast). workers are processes that read pictures for a trained
    encoder, where these are too many to stay in memory. profile writes trace.json, five steps for
    Perfetto. replicas trains so many models side by side on the same batches, see ReplicasConfig;
    order_seed decides the order of the batches (null: seed). ema, such as 0.999: the decay of a
    moving average of the weights, which is validated and kept as best.pt; keep_epochs keeps the
    weights of so many last epochs as epoch_N.pt, for scripts/average.py. graph=on takes each step
    whole, as one CUDA graph, over data that lie on the GPU; auto says which is taken and why.
    """

    epochs: int = 10
    batch_size: int = 64
    batch_by: str = "caption"
    window: int = 64
    epoch_windows: int | None = None
    accumulation: int = 1
    label_smoothing: float = 0.0
    precision: str = "float32"
    best_metric: str = "BLEU-4"
    patience: int | None = None
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int | None = None
    log_steps: int = 20
    workers: int = 1
    shown_pictures: int = 8
    progress: bool = True
    profile: bool = False
    replicas: int = 1
    order_seed: int | None = None
    ema: float | None = None
    keep_epochs: int = 0
    graph: str = "auto"

    def __post_init__(self) -> None:
        for key in (
            "epochs", "batch_size", "window", "epoch_windows", "accumulation", "patience",
            "checkpoint_steps", "log_steps", "replicas",
        ):  # fmt: skip
            in_range(f"trainer.{key}", getattr(self, key), 1)
        in_range("trainer.label_smoothing", self.label_smoothing, 0, 0.999)
        in_range("trainer.workers", self.workers, 0)
        in_range("trainer.order_seed", self.order_seed, 0)
        in_range("trainer.keep_epochs", self.keep_epochs, 0)
        in_range("trainer.ema", self.ema, 0, 0.999999)
        in_range("trainer.shown_pictures", self.shown_pictures, 0)
        positive("trainer.checkpoint_minutes", self.checkpoint_minutes)
        one_of("trainer.batch_by", self.batch_by, ("caption", "picture"))
        one_of("trainer.graph", self.graph, ("auto", "on", "off"))
        one_of("trainer.precision", self.precision, ("float32", "bf16"))
        metrics = (
            "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", *TEXT_METRICS,
        )  # fmt: skip
        one_of("trainer.best_metric", self.best_metric, metrics)


@dataclass
class ReplicasConfig:
    """What differs among the models of trainer.replicas=K: lists of K values.

    null leaves a setting as it is for all of them; the seeds are then seed, seed + 1, ...
    """

    seed: list[int] | None = None
    lr: list[float] | None = None
    weight_decay: list[float] | None = None
    input_dropout: list[float] | None = None
    output_dropout: list[float] | None = None
    layer_dropout: list[float] | None = None
    feature_dropout: list[float] | None = None

    def __post_init__(self) -> None:
        for value in self.lr or []:
            positive("replicas.lr", value)
        for value in self.weight_decay or []:
            in_range("replicas.weight_decay", value, 0)
        for key in ("input_dropout", "output_dropout", "layer_dropout", "feature_dropout"):
            for value in getattr(self, key) or []:
                in_range(f"replicas.{key}", value, 0, 0.999)

    def given(self) -> dict[str, list[Any]]:
        """The lists that are not null."""
        return {key: values for key, values in vars(self).items() if values is not None}
