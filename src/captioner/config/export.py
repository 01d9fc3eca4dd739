"""Schema of scripts/export.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from captioner.checks import in_range, one_of
from captioner.config.commands import RunConfig
from captioner.config.model import GenerationConfig
from captioner.errors import ConfigError

FORMATS = ("folder", "onnx")


@dataclass
class ExportConfig(RunConfig):
    """scripts/export.py: a checkpoint as a folder to give away, or as one ONNX graph.

    overwrite: replaces an earlier export at `out`. folder: include_encoder puts a frozen encoder's
    weights into it that a package or a download has as well (others always are); scores: files or
    folders of evaluations for the card (null: those in the run's folder); license: of the weights.
    onnx: `generation` is the search in the graph; it must give the same captions as PyTorch on the
    first `pictures` of `split`, of the checkpoint's data or of `data`, or of `images` (files,
    folders, globs), in batches of `generation.batch_size`.
    """

    checkpoint: str = MISSING
    format: str = "folder"
    out: str = MISSING
    overwrite: bool = False
    include_encoder: bool = False
    scores: Any = None
    license: str = "other"
    generation: GenerationConfig = MISSING
    data: Any = None
    split: str = "dev"
    images: Any = None
    pictures: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("format", self.format, FORMATS)
        in_range("pictures", self.pictures, 1)
        if self.format == "onnx":
            self._check_decoder()

    def _check_decoder(self) -> None:
        if self.generation.method == "sample":
            raise ConfigError(
                "the ONNX graph searches: generation must be greedy or beam, got sample"
            )
        if self.generation.groups > 1:
            raise ConfigError(
                f"the ONNX graph has no diverse beam search: generation.groups must be 1, got "
                f"{self.generation.groups}"
            )
