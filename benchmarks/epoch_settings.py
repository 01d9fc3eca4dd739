"""What a training step consists of in suite=epoch and suite=scale, for every side alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """One model size with its optimiser: names and defaults as in ModelConfig, OptimizerConfig.

    embedding_dim is hidden_size.
    """

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


# The loop that everybody writes, at neuraltalk's and neon's sizes; then the experiments as they are
# (configs/experiment: tests hold these figures to them).
CASES = {
    "adam_256": StepSettings(hidden_size=256, batch_size=100, clip_norm=5.0),
    "adam_512": StepSettings(hidden_size=512, batch_size=128, clip_norm=5.0),
    "neuraltalk": StepSettings(
        hidden_size=256, batch_size=100, optimizer="rmsprop", lr=1e-3,
        arguments={"alpha": 0.999, "eps": 1e-8}, weight_decay=1e-8, clip_value=5.0,
        input_dropout=0.5, output_dropout=0.5,
    ),
    "neon": StepSettings(
        hidden_size=512, batch_size=128, optimizer="rmsprop", lr=5e-4,
        arguments={"alpha": 0.997, "eps": 1e-8}, clip_value=1.0, input_dropout=0.5,
    ),
    "nic": StepSettings(
        hidden_size=512, batch_size=64, lr=1e-3, clip_norm=5.0, input_dropout=0.3,
        output_dropout=0.5,
    ),
}  # fmt: skip
# How many times the plain loop's speed is asked for.
ASKED = {"adam_256": 2.0, "adam_512": 1.8, "neuraltalk": 2.0, "neon": 1.8, "nic": 1.8}
