"""Example images: of the captioner's own data where they are here, else drawn ones."""

import logging
from pathlib import Path

from captioner.build.components import load_data
from captioner.data.captions import CaptionedImage
from captioner.data.scenes.dataset import draw_scenes
from captioner.demo.models import Models
from captioner.errors import CaptionerError

log = logging.getLogger(__name__)
SHOWN = 6


def example_images(models: Models, folder: Path) -> list[Path]:
    """Dev images of the first captioner's data set; scenes drawn into `folder` without one.

    A captioner of scenes gets test scenes, which do not depend on how many it was trained on.
    """
    if not models.captioners:
        return []
    data = models.captioners[0].trained.data
    if data.kind == "scenes":
        return _scenes(folder, size=data.size, seed=data.seed)
    try:
        images = load_data(data).split("dev")
    except (CaptionerError, OSError) as error:
        log.info("examples are drawn, the images that it was trained on are not here: %s", error)
        images = ()
    step = max(1, len(images) // SHOWN)
    return _files(images[::step])[:SHOWN] or _scenes(folder, size=224, seed=0)


def _scenes(folder: Path, *, size: int, seed: int) -> list[Path]:
    drawn = draw_scenes(folder, train=0, dev=0, test=SHOWN, size=size, seed=seed)
    return _files(drawn.split("test"))


def _files(images: tuple[CaptionedImage, ...]) -> list[Path]:
    return [image.path for image in images if image.path.is_file()]
