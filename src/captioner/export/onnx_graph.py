"""A captioner with its search as one ONNX file, its metadata included."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from captioner.errors import ConfigError
from captioner.export.loop import CaptioningLoop
from captioner.files import atomic_write

OPSET = 18
OUTPUTS = ("token_ids", "log_probs", "scores")


def write_onnx(
    path: Path | str, loop: CaptioningLoop, *, size: int, metadata: Mapping[str, str]
) -> None:
    """Write pixels [B, 3, size, size] -> OUTPUTS with any B; shapes as `CaptioningLoop.forward`.

    `metadata` becomes the file's metadata_props. ConfigError without the extra `onnx`, or for an
    encoder that cannot be exported.
    """
    require_onnx()
    for name in ("onnxscript", "onnx_ir"):  # they log every constant that they fold
        logging.getLogger(name).setLevel(logging.WARNING)
    pixels = torch.zeros(2, 3, size, size)
    try:
        program = torch.onnx.export(
            loop.eval(),
            (pixels,),
            dynamo=True,
            input_names=["pixels"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels": {0: "batch"}},
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"this model cannot be exported to ONNX: {reason}") from error
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_write(path) as handle:
        handle.write(proto.SerializeToString())


def require_onnx() -> Any:
    """The module onnxruntime; ConfigError that names the extra where one of them is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"format=onnx needs {error.name}: pip install 'captioner[onnx]'"
        ) from error
    return onnxruntime


def _stable_sort(values: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """torch.sort(stable=True) for the exporter, which has none; TopK keeps the order of equals."""
    from onnxscript import opset18

    everything = opset18.Shape(values, start=dim, end=dim + 1 or None)
    return opset18.TopK(values, everything, axis=dim, largest=int(descending), sorted=1)
