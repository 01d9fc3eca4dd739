"""Loads the extension that csrc/ is built into, or says why it is absent."""

import importlib
import os

import torch

HOW_TO_BUILD = "`python setup.py build_ext --inplace` builds it"
OPERATORS = (
    "lstm_packed",
    "lstm_algorithm_fits",
    "lstm_step",
    "gru_packed",
    "linear_cross_entropy",
    "additive_scores",
    "cpu_vector_bytes",
)


def _load() -> str | None:
    """Import the extension, or the build of it that CAPTIONER_EXTENSION names (a sanitized one)."""
    other = os.environ.get("CAPTIONER_EXTENSION")
    try:
        if other:
            torch.ops.load_library(other)
        else:
            importlib.import_module("captioner.ops._extension")
    except ModuleNotFoundError:
        return f"the extension is not built here ({HOW_TO_BUILD})"
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        return f"the extension cannot be loaded: {reason} ({HOW_TO_BUILD} anew)"
    missing = [name for name in OPERATORS if not hasattr(torch.ops.captioner, name)]
    if missing:
        return f"the extension is an older one, without {', '.join(missing)} ({HOW_TO_BUILD} anew)"
    return None


def _absent_on(key: str) -> str | None:
    if ABSENT is not None:
        return ABSENT
    if torch._C._dispatch_has_kernel_for_dispatch_key("captioner::lstm_packed", key):
        return None
    return f"the extension has no kernel for {key} (CAPTIONER_CUDA=1 builds CUDA's)"


# Found out once, while the package is imported: None, or one sentence that says what is missing.
ABSENT = _load()
ABSENT_ON = {"cpu": _absent_on("CPU"), "cuda": _absent_on("CUDA")}


def why_not_on(device_type: str) -> str | None:
    """None where the operators run on this kind of device, else one sentence that says why not."""
    return ABSENT_ON.get(device_type, f"the extension has no kernel for {device_type}")
