"""The demo's models: captioners to compare, and a language model that writes."""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioner.build.attention import find_grid
from captioner.build.checkpoint import TrainedCaptioner, TrainedLanguageModel, load_trained
from captioner.data.images import load_image
from captioner.errors import ConfigError, ImageError
from captioner.evaluation.attention import WordMaps
from captioner.inference.attention import RegionGrid
from captioner.inference.captions import Caption
from captioner.inference.text import TextGenerator
from captioner.inference.text_stream import stream_text

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # none that Pillow opens by another program
MAX_PIXELS = 50_000_000  # of an upload: 150 MB once it is opened


@dataclass(frozen=True)
class CaptionModel:
    """A captioner and its name."""

    name: str
    trained: TrainedCaptioner

    def __post_init__(self) -> None:
        if self.trained.features.encoder is None:
            raise ConfigError(
                f"{self.name} was trained on your own features (encoder.kind=features): without "
                "the network that made them it cannot read an image"
            )

    def captions(self, image: Image.Image, generation: Any) -> list[Caption]:
        """The captions of an image, best first, with the probability of every word.

        `generation` is what `TrainedCaptioner.generator` takes.
        """
        return self.captions_and_maps(image, generation)[0]

    def captions_and_maps(
        self, image: Image.Image, generation: Any
    ) -> tuple[list[Caption], list[WordMaps] | None]:
        """The same, and each caption's attention maps, of a model that attends to regions."""
        images = self.trained.features.of_image(image)
        generator = self.trained.generator(generation)
        captions = generator.captions(images)
        if self._grid is None:
            return captions[0], None
        (found,) = generator.attention_maps(images, captions, self._grid)
        maps = [WordMaps.of(x.weights, x.sentinel, crop=x.grid.crop) for x in found]
        return captions[0], maps

    @cached_property
    def _grid(self) -> RegionGrid | None:
        return find_grid(self.trained.model, self.trained.features)


@dataclass(frozen=True)
class TextModel:
    """A language model and its name."""

    name: str
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


MODELS: dict[str, Any] = {"captions": CaptionModel, "text": TextModel}


@dataclass(frozen=True)
class Models:
    """What a demo shows."""

    captioners: tuple[CaptionModel, ...]
    writer: TextModel | None


def load_models(checkpoints: Sequence[str], *, device: torch.device) -> Models:
    """Load checkpoints of either task.

    CheckpointError for one that cannot be used; ConfigError for more than two captioners or more
    than one language model, which the layout has no place for.
    """
    models = []
    for path in map(Path, checkpoints):
        trained = load_trained(path, device=device)
        run = path.resolve().parent.name
        name = run if path.stem == "best" else f"{run}, {path.name}"
        models.append(MODELS[trained.task](name, trained))
    captioners = tuple(one for one in models if isinstance(one, CaptionModel))
    writers = [one for one in models if isinstance(one, TextModel)]
    if len(captioners) > 2 or len(writers) > 1:
        raise ConfigError(
            "the demo shows at most two captioners and one language model, checkpoint= names "
            f"{len(captioners)} and {len(writers)}"
        )
    return Models(captioners, writers[0] if writers else None)


def facts(model: CaptionModel | TextModel) -> str:
    """What is known of a model, in one line."""
    return " · ".join(model.trained.describe())


def read_upload(path: Path, name: str) -> Image.Image:
    """An uploaded image, upright RGB; an ImageError calls it by `name`, its file's own."""
    try:
        return load_image(path, max_pixels=MAX_PIXELS, kinds=KINDS)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), name)) from error
