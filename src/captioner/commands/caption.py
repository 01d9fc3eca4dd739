"""What caption.py does: captions of images that are in no data set."""

import glob
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from captioner import config as schema
from captioner.build.components import pick_device
from captioner.build.ensemble import load_ensemble
from captioner.commands.trained import generation_of
from captioner.data.images import load_image
from captioner.errors import DataError
from captioner.files import write_json
from captioner.inference.captions import Caption

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def caption(config: schema.CaptionConfig) -> Iterator[str]:
    """The lines for the terminal, an image's as soon as it has its captions; writes `out`."""
    captioned = []
    for path, captions in caption_files(config):
        found = [{"caption": x.text, "log_prob": x.log_prob, "words": x.words} for x in captions]
        captioned.append({"image": str(path), "captions": found})
        yield str(path)
        yield from (f"  {math.exp(one.log_prob):.2e}  {one.text}" for one in captions)
    if config.out is not None:
        write_json(config.out, captioned)


def caption_files(config: schema.CaptionConfig) -> Iterator[tuple[Path, list[Caption]]]:
    """Each image that files, folders and globs name, with its captions, best first."""
    paths = find_images(config.images)
    models = schema.checkpoint_paths(config.checkpoint)
    trained = load_ensemble(models, device=pick_device(config.device), views=config.views)
    generation = generation_of(trained.members[0].checkpoint, config.generation)
    generator = trained.generator(generation)
    for path in paths:
        yield path, generator.captions(trained.of_image(load_image(path)))[0]


def find_images(images: str | Iterable[str]) -> list[Path]:
    """The image files that names, folders and globs stand for; DataError when there are none."""
    names = images.split(",") if isinstance(images, str) else list(images)
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
            if not inside:
                raise DataError(f"the folder {path} holds no images")
            found += inside
        elif path.exists() or not glob.has_magic(name):
            found.append(path)
        else:
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207 any root
            if not matches:
                raise DataError(f"no file matches {name}")
            found += matches
    return found
