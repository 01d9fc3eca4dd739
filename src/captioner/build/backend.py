"""Which implementation computes the LSTM: in training, and in float32 afterwards."""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from captioner import config as schema
from captioner.models.lstm import LSTM
from captioner.ops import choose_backend

log = logging.getLogger(__name__)
TENSOR_CORES = ("persistent", "cluster")  # multiply in tensor cores only
Validate = Callable[[int], dict[str, Any]]


def name_backend(kind: str, requested: str, device: torch.device) -> None:
    """Log who computes the recurrent layers, before any data is read; "auto" itself says it of the
    LSTM, and why. ConfigError for a backend that cannot run, which computes the loss at any rate.
    """
    chosen = choose_backend(requested, device.type)
    if kind not in ("lstm", "gru"):
        log.info("%s on %s: PyTorch's own operators", kind, device.type)
    elif kind == "gru":
        fused = chosen == "fused" and device.type == "cpu"
        log.info("GRU on %s: %s", device.type, "fused" if fused else "torch's own")
    elif requested != "auto":
        log.info("LSTM backend on %s: %s", device.type, chosen)


def float32_backend(requested: str) -> str:
    """The backend for validation and inference, which compute in float32 whatever the training did.

    Where `requested` multiplies float32 as TF32 only, and torch does not allow that, it is "fused",
    which then takes the plain algorithm. That is logged.
    """
    backend = os.environ.get("CAPTIONER_LSTM", "auto") if requested == "auto" else requested
    if backend not in TENSOR_CORES or torch.backends.cuda.matmul.fp32_precision == "tf32":
        return requested
    log.info("LSTM backend %s has no strict float32: fused validates and captions", backend)
    return "fused"


def for_inference(config: schema.ModelConfig) -> schema.ModelConfig:
    """A trained model's configuration, its backend one that computes float32."""
    return dataclasses.replace(config, backend=float32_backend(config.backend))


def validating_in_float32(validate: Validate, model: nn.Module, backend: str) -> Validate:
    """`validate`, while it runs the LSTMs of a model that trains with `backend` in float32."""
    layers = [module for module in model.modules() if isinstance(module, LSTM)]
    exact = float32_backend(backend)

    def validated(step: int) -> dict[str, Any]:
        try:
            for layer in layers:
                layer.backend = exact
            return validate(step)
        finally:
            for layer in layers:
                layer.backend = backend

    return validated
