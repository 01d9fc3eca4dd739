"""Trained models as a notebook uses them: `captioner.load("my_model").caption("photo.jpg")`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioner.build.checkpoint import TrainedCaptioner, TrainedLanguageModel, load_trained
from captioner.build.components import pick_device
from captioner.commands.caption import find_images
from captioner.commands.trained import changed_generation, stored_generation
from captioner.data.images import as_rgb, load_image
from captioner.errors import ConfigError
from captioner.inference.captions import Caption
from captioner.inference.text import Listener, Sample, TextGenerator

Images = str | Path | Image.Image


@dataclass(frozen=True)
class CaptionModel:
    """A captioner that takes images: files, folders, PIL images, or a list of them.

    `generation` has the settings that its training was validated with; keyword arguments change
    them: those of the group `generation` on the command line (method, beam_size, n_best, ...), of
    which `beam_size` alone asks for beam search.
    """

    trained: TrainedCaptioner
    generation: Any

    def caption(self, images: Images | Sequence[Images], **options: Any) -> str | list[str]:
        """The best caption; of several images (a list, or a folder by name) a list of them.

        Errors as `captions`.
        """
        found = self.captions(images, **options)
        if isinstance(found[0], Caption):
            return found[0].text
        return [one[0].text for one in found]

    def captions(
        self, images: Images | Sequence[Images], **options: Any
    ) -> list[Caption] | list[list[Caption]]:
        """The `n_best` captions with their words' probabilities, best first, in place of texts.

        Raises ConfigError naming a wrong option, ImageError naming an unreadable image, DataError
        for an empty folder.
        """
        generation = changed_generation(self.generation, options)
        files, several = _files(images)
        generator = self.trained.generator(generation)
        found: list[list[Caption]] = []
        for start in range(0, len(files), generation.batch_size):
            batch = files[start : start + generation.batch_size]
            # Each is encoded alone, as caption.py does, so that no caption depends on the others.
            read = [self.trained.features.of_image(_opened(one)) for one in batch]
            found += generator.captions(torch.cat(read))
        return found if several else found[0]


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


MODELS: dict[str, Callable[[Any], CaptionModel | TextModel]] = {
    "captions": lambda trained: CaptionModel(trained, stored_generation(trained.checkpoint)),
    "text": TextModel,
}


def load_model(path: Path | str, device: str | None = None) -> CaptionModel | TextModel:
    """What `captioner.load` returns; ConfigError for a device that is not there."""
    trained = load_trained(path, device=pick_device(device or "auto"))
    return MODELS[trained.task](trained)


def _files(images: Images | Sequence[Images]) -> tuple[list[Path | Image.Image], bool]:
    """The images that the argument names, and whether it can be several."""
    if isinstance(images, Image.Image):
        return [images], False
    if isinstance(images, str | Path):
        return list(find_images([str(images)])), Path(images).is_dir()
    files = [file for one in images for file in _files(one)[0]]
    if not files:
        raise ConfigError("there is no image to caption: the list is empty")
    return files, True


def _opened(image: Path | Image.Image) -> Image.Image:
    return as_rgb(image) if isinstance(image, Image.Image) else load_image(image)
