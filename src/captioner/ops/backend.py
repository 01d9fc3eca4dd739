"""Which implementation computes the LSTM: chosen by name or by device, never in silence."""

import logging
import os
from functools import cache

import torch

from captioner.errors import ConfigError
from captioner.ops.algorithms import Algorithm
from captioner.ops.extension import why_not_on

ONLY_CUDA = tuple(Algorithm.__members__)  # of which ops/algorithms.py chooses for "fused"
FUSED = ("fused", *ONLY_CUDA)
BACKENDS = ("auto", "reference", "torch", *FUSED)
RENAMED = {"clusters": "cluster"}
log = logging.getLogger(__name__)


def choose_backend(requested: str, device_type: str) -> str:
    """The backend that runs: one of BACKENDS but "auto".

    "plain", "persistent" and "cluster" are "fused" on a CUDA device with that algorithm. "auto" is
    settled by the environment variable CAPTIONER_LSTM where it is set, otherwise by device; the
    choice and its reason are logged once. Raises ConfigError for a name that is unknown or a
    backend that this installation does not have.
    """
    if requested == "auto":
        return _automatic(device_type, os.environ.get("CAPTIONER_LSTM", "auto"))
    return _available(requested, device_type)


@cache
def _automatic(device_type: str, environment: str) -> str:
    absent = why_not_on(device_type)
    if environment != "auto":
        chosen, reason = _available(environment, device_type), "CAPTIONER_LSTM asks for it"
    elif device_type == "cuda":
        # The fused kernels take over once benchmarks/results/ holds a record of them on a GPU.
        chosen, reason = "torch", "cuDNN is the fastest that is verified on this kind of device"
    elif device_type == "cpu" and absent is None:
        chosen, reason = "fused", "the compiled kernel is measured fastest"
    else:
        # One GEMM for dW after the loop, not one a step: `scripts/benchmark.py suite=lstm`.
        chosen, reason = "reference", absent or "there is no compiled kernel for this device"
    if not torch.compiler.is_compiling():  # which cannot trace a logger
        log.info("LSTM backend on %s: %s (%s)", device_type, chosen, reason)
    return chosen


def _available(name: str, device_type: str) -> str:
    if name in RENAMED:
        raise ConfigError(f"LSTM backend {name!r} is now called {RENAMED[name]!r}")
    if name not in BACKENDS[1:]:
        raise ConfigError(f"unknown LSTM backend {name!r}; there are {', '.join(BACKENDS)}")
    if name in ONLY_CUDA and device_type != "cuda":
        raise ConfigError(
            f"LSTM backend {name!r} is for CUDA devices, this one is {device_type}; take 'fused'"
        )
    absent = why_not_on(device_type) if name in FUSED else None
    if absent is not None:
        raise ConfigError(
            f"LSTM backend {name!r} cannot run: {absent}; take 'reference' or 'torch'"
        )
    return name
