"""The checkpoints that a page shows: captioners to compare, and a language model that writes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioner.build.captioning import TrainedCaptioner, load_captioner
from captioner.build.language_modeling import (
    TrainedLanguageModel,
    is_language_model,
    load_language_model,
)
from captioner.config import GenerationConfig
from captioner.data.images import load_image
from captioner.errors import ConfigError, ImageError
from captioner.inference.captions import Caption
from captioner.inference.text import TextGenerator
from captioner.inference.text_stream import stream_text
from captioner.training.checkpoint import Checkpoint
from captioner.training.model_folder import open_checkpoint

log = logging.getLogger(__name__)

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # none that calls another program
MAX_PIXELS = 50_000_000  # of an upload: 150 MB once it is opened


@dataclass(frozen=True)
class Model:
    """A checkpoint's model with the name and the facts that stand above what it says."""

    name: str
    facts: str


@dataclass(frozen=True)
class CaptionerModel(Model):
    """A captioner that may be asked about a picture."""

    trained: TrainedCaptioner

    def captions(self, picture: Image.Image, generation: GenerationConfig) -> list[Caption]:
        """The captions of a picture, best first, with the probability of every word."""
        images = self.trained.features.of_image(picture)
        return self.trained.generator(generation).captions(images)[0]


@dataclass(frozen=True)
class WritingModel(Model):
    """A language model that may be asked to go on with a text."""

    trained: TrainedLanguageModel

    def writes(self, prompt: str, **settings: Any) -> Generator[str, None, None]:
        """The prompt as the model reads it, then the whole text each time that it has grown.

        `settings` as for `TextGenerator.samples`. DataError when the prompt cannot be encoded.
        """
        codec = self.trained.codec
        text = codec.decode(codec.encode(prompt))
        yield text
        pieces = stream_text(TextGenerator(self.trained.model, codec), prompt, **settings)
        with contextlib.closing(pieces):
            for piece in pieces:
                text += piece
                yield text


@dataclass(frozen=True)
class Models:
    """What one page shows."""

    captioners: tuple[CaptionerModel, ...]
    writer: WritingModel | None


def load_models(checkpoints: Sequence[str], *, device: torch.device) -> Models:
    """Load checkpoints, each known for what it is by itself.

    CheckpointError for one that cannot be used; ConfigError for more than two captioners or more
    than one language model, which the page has no place for.
    """
    captioners: list[CaptionerModel] = []
    writers: list[WritingModel] = []
    for path in checkpoints:
        checkpoint = open_checkpoint(path)
        if is_language_model(checkpoint):
            writers.append(_writer(Path(path), checkpoint, device))
        else:
            captioners.append(_captioner(Path(path), checkpoint, device))
    if len(captioners) > 2 or len(writers) > 1:
        raise ConfigError(
            "the page shows at most two captioners and one language model, checkpoint= names "
            f"{len(captioners)} and {len(writers)}"
        )
    return Models(tuple(captioners), writers[0] if writers else None)


def read_upload(path: Path, name: str) -> Image.Image:
    """An uploaded picture, upright RGB; ImageError calls it by the `name` that its owner knows."""
    try:
        return load_image(path, max_pixels=MAX_PIXELS, kinds=KINDS)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), name)) from error


def _captioner(path: Path, checkpoint: Checkpoint, device: torch.device) -> CaptionerModel:
    trained = load_captioner(path, device=device, checkpoint=checkpoint)
    if trained.features.encoder is None:
        raise ConfigError(
            f"{path} was trained on your own features (encoder.kind=features): without the network "
            "that made them it cannot read a picture"
        )
    facts = [
        f"trained on {trained.data.kind}",
        trained.features.encoder.name,
        f"{len(trained.vocabulary):,} words",
        *_scores(checkpoint, "BLEU-4", "{:.1f} BLEU-4 on dev"),
    ]
    return CaptionerModel(_name(path), " · ".join(facts), trained)


def _writer(path: Path, checkpoint: Checkpoint, device: torch.device) -> WritingModel:
    trained = load_language_model(path, device=device, checkpoint=checkpoint)
    size = sum(parameter.numel() for parameter in trained.model.parameters())
    facts = [
        f"{len(trained.codec.vocabulary):,} {trained.codec.unit}s",
        f"{size / 1e6:.1f} million weights",
        *_scores(checkpoint, "loss", f"{{:.3f}} nats a {trained.codec.unit} on dev"),
    ]
    return WritingModel(_name(path), " · ".join(facts), trained)


def _name(path: Path) -> str:
    """Run and file; best.pt, which most are, goes without saying."""
    run = path.resolve().parent.name
    return run if path.stem == "best" else f"{run}, {path.name}"


def _scores(checkpoint: Checkpoint, key: str, text: str) -> list[str]:
    return [text.format(checkpoint.scores[key])] if key in checkpoint.scores else []
