"""Several checkpoints, and several views of an image, that caption together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner import config as schema
from captioner.build.checkpoint import TrainedCaptioner, load_captioner
from captioner.data.captions import CaptionedImage
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.inference.captions import CaptionGenerator, ImageBatches
from captioner.models.ensemble import Ensemble


@dataclass(frozen=True)
class TrainedEnsemble:
    """One or more trained captioners of one vocabulary; encoders may differ.

    Each is asked about every one of the `views` of an image, and all probabilities are averaged.
    """

    members: tuple[TrainedCaptioner, ...]
    views: tuple[str, ...] = ("original",)

    @property
    def vocabulary(self) -> Vocabulary:
        """What all members write with."""
        return self.members[0].vocabulary

    @property
    def data(self) -> Any:
        """The first member's data set."""
        return self.members[0].data

    def generator(self, config: schema.GenerationConfig, *, images: int = 1) -> CaptionGenerator:
        """As `TrainedCaptioner.generator`, of all members together."""
        first = self.members[0].generator(config, images=images)
        models = [one.model for one in self.members for _ in self.views]
        model = models[0] if len(models) == 1 else Ensemble(models)
        return CaptionGenerator(model, self.vocabulary, first.method)

    def source(self, images: Sequence[CaptionedImage]) -> ImageBatches:
        """Rows of `images` [I] to what `generator` takes of them: of each member and view."""
        sources = [
            one.features.source(images, views=[view]) for one in self.members for view in self.views
        ]
        return lambda rows: _for_model([source(rows) for source in sources])

    def of_image(self, image: Any) -> Tensor | tuple[Tensor, ...]:
        """What `generator` takes of one PIL image."""
        return _for_model(
            [one.features.of_image(image, view) for one in self.members for view in self.views]
        )


def _for_model(images: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return images[0] if len(images) == 1 else tuple(images)


def load_ensemble(
    paths: Sequence[Path], *, device: torch.device, views: Sequence[str] = ("original",)
) -> TrainedEnsemble:
    """Rebuild the captioners of all checkpoints, each for all `views`.

    Raises ConfigError where one has another vocabulary than the first, or own features, which have
    one view; CheckpointError as `load_captioner`.
    """
    members = tuple(load_captioner(path, device=device) for path in paths)
    words = members[0].vocabulary.to_json()
    for path, member in zip(paths, members, strict=True):
        if member.vocabulary.to_json() != words:
            raise ConfigError(
                f"{path} has another vocabulary ({len(member.vocabulary)} tokens) than "
                f"{paths[0]} ({len(members[0].vocabulary)}): an ensemble needs one and the same"
            )
        if member.features.encoder is None and tuple(views) != ("original",):
            raise ConfigError(
                f"{path} was trained on your own features (encoder.kind=features): without the "
                f"network that made them there are no views {', '.join(views)}"
            )
    return TrainedEnsemble(members, tuple(views))
