"""Pictures to begin with: of the captioner's own data where they are here, else drawn ones."""

from __future__ import annotations

import logging
from pathlib import Path

from captioner.build.components import load_data
from captioner.config import ScenesData
from captioner.data.captions import CaptionedImage
from captioner.data.scenes.dataset import draw_scenes
from captioner.demo.models import Models
from captioner.errors import CaptionerError

log = logging.getLogger(__name__)
SHOWN = 6


def example_pictures(models: Models, folder: Path) -> list[Path]:
    """Dev pictures of the first captioner's data set; scenes drawn into `folder` without one.

    A captioner of scenes gets test scenes, which are the same however many it was trained on.
    """
    if not models.captioners:
        return []
    data = models.captioners[0].trained.data
    if isinstance(data, ScenesData):
        return _scenes(folder, data)
    try:
        images = load_data(data).split("dev")
    except (CaptionerError, OSError) as error:
        log.info("examples are drawn, the pictures that it was trained on are not here: %s", error)
        return _scenes(folder, ScenesData(size=224))
    step = max(1, len(images) // SHOWN)
    return _there(images[::step])[:SHOWN] or _scenes(folder, ScenesData(size=224))


def _scenes(folder: Path, data: ScenesData) -> list[Path]:
    drawn = draw_scenes(folder, train=0, dev=0, test=SHOWN, size=data.size, seed=data.seed)
    return _there(drawn.split("test"))


def _there(images: tuple[CaptionedImage, ...]) -> list[Path]:
    return [image.path for image in images if image.path.is_file()]
