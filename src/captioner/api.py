"""Trained models as a notebook uses them: `captioner.load("my_model").caption("photo.jpg")`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from captioner import config as schema
from captioner.build.checkpoint import (
    TrainedCaptioner,
    TrainedLanguageModel,
    load_captioner,
    load_language_model,
    task_of,
)
from captioner.build.components import pick_device
from captioner.checks import one_of
from captioner.commands.evaluate import find_pictures
from captioner.data.images import as_rgb, load_image
from captioner.errors import ConfigError
from captioner.inference.captions import Caption
from captioner.inference.text import Listener, Sample, TextGenerator
from captioner.runs.upgrade import upgrade
from captioner.training.model_folder import open_checkpoint

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class CaptionModel:
    """A captioner that takes pictures: files, folders, PIL images, or a list of them.

    `generation` has the settings that its training was validated with; keyword arguments change
    them: those of the group `generation` on the command line (method, beam_size, n_best, ...).
    """

    trained: TrainedCaptioner
    generation: schema.GenerationConfig

    def caption(self, images: Picture | Sequence[Picture], **options: Any) -> str | list[str]:
        """The best caption; of several pictures (a list, or a folder by name) a list of them.

        Errors as `captions`.
        """
        found = self.captions(images, **options)
        if isinstance(found[0], Caption):
            return found[0].text
        return [one[0].text for one in found]

    def captions(
        self, images: Picture | Sequence[Picture], **options: Any
    ) -> list[Caption] | list[list[Caption]]:
        """The `n_best` captions with their words' probabilities, best first, in place of texts.

        Raises ConfigError naming a wrong option, ImageError naming an unreadable picture, DataError
        for an empty folder.
        """
        generation = self.decoder(**options)
        pictures, several = _pictures(images)
        generator = self.trained.generator(generation)
        found: list[list[Caption]] = []
        for start in range(0, len(pictures), generation.batch_size):
            batch = pictures[start : start + generation.batch_size]
            # Each is encoded alone, as caption.py does, so that no caption depends on the others.
            read = [self.trained.features.of_image(_opened(one)) for one in batch]
            found += generator.captions(torch.cat(read))
        return found if several else found[0]

    def decoder(self, **options: Any) -> schema.GenerationConfig:
        """The decoder's settings with `options`; `beam_size` alone asks for beam search."""
        known = [field.name for field in dataclasses.fields(schema.GenerationConfig)]
        for key in options:
            one_of("an option of the decoder", key, known)
        if "beam_size" in options:
            options = {"method": "beam", **options}
        try:
            merged = OmegaConf.merge(OmegaConf.structured(self.generation), options)
        except OmegaConfBaseException as error:
            raise ConfigError(str(error).splitlines()[0]) from error
        return schema.parse(merged)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TextModel:
    """A language model that writes."""

    trained: TrainedLanguageModel

    def generate(self, prompt: str = "", **options: Any) -> str:
        """A text after `prompt`, which is not repeated; options as `samples`."""
        return self.samples(prompt, **options)[0].text

    def samples(
        self,
        prompt: str = "",
        *,
        length: int = 600,
        temperature: float = 0.8,
        listener: Listener | None = None,
        **options: Any,
    ) -> list[Sample]:
        """Texts of at most `length` tokens; `listener` is called with a text's number and growth.

        Other options (n, top_k, top_p, seed, stop) are `TextGenerator.samples`'s.
        """
        generator = TextGenerator(self.trained.model, self.trained.codec, listener=listener)
        return generator.samples(prompt, length=length, temperature=temperature, **options)


def load_model(path: Path | str, device: str | None = None) -> CaptionModel | TextModel:
    """What `captioner.load` returns; ConfigError for a device that is not there."""
    where = pick_device(device or "auto")
    checkpoint = open_checkpoint(path)
    if task_of(checkpoint) == "text":
        return TextModel(load_language_model(path, device=where, checkpoint=checkpoint))
    trained = load_captioner(path, device=where, checkpoint=checkpoint)
    settings = upgrade(json.loads(checkpoint.texts["config"])).get("generation", {})
    return CaptionModel(trained, schema.GenerationConfig(**settings))


def _pictures(images: Picture | Sequence[Picture]) -> tuple[list[Path | Image.Image], bool]:
    """The pictures that the argument names, and whether it can be several."""
    if isinstance(images, Image.Image):
        return [images], False
    if isinstance(images, str | Path):
        return list(find_pictures([str(images)])), Path(images).is_dir()
    pictures: list[Path | Image.Image] = []
    for one in images:
        pictures += _pictures(one)[0]
    if not pictures:
        raise ConfigError("there is no picture to caption: the list is empty")
    return pictures, True


def _opened(picture: Path | Image.Image) -> Image.Image:
    return as_rgb(picture) if isinstance(picture, Image.Image) else load_image(picture)
