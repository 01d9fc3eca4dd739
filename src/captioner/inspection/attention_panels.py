"""A caption's attention maps on one sheet: the image once for each word, dark where the model did
not look.

Letters: W words, h w the grid's sides.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.evaluation.attention import seen_area
from captioner.inference.attention import CaptionMaps

DARKEST = 0.75  # of the veil over an image, where a cell has no weight at all
_SENTINEL = (217, 130, 43)
_LABEL = 20  # pixels under a panel
_GAP = 6


def veiled(image: Image.Image, weights: np.ndarray, crop: float | None) -> Image.Image:
    """An RGB image under a dark veil, the thinner the more weight [h, w] a cell has beside the
    largest; `crop` as in `RegionGrid`."""
    light = np.rint(255 * weights / max(float(weights.max()), 1e-12)).astype(np.uint8)
    area = seen_area(*image.size, crop)
    left, top, right, bottom = (round(x * image.size[k % 2]) for k, x in enumerate(area))
    sides = (max(1, right - left), max(1, bottom - top))
    shown = Image.fromarray(light).resize(sides, Image.Resampling.BILINEAR)
    strength = Image.new("L", image.size, 0)
    strength.paste(shown, (left, top))
    strength = strength.point(lambda one: round(255 - DARKEST * (255 - one)))
    return Image.composite(image, Image.new("RGB", image.size), strength)


def attention_panels(
    image: Image.Image,
    words: Sequence[str],
    maps: CaptionMaps,
    *,
    side: int = 112,
    columns: int = 7,
) -> Image.Image:
    """The image and a panel for each word, `columns` in a row, the image's longer side `side`
    pixels; under a word the share of its attention that lay on the sentinel, of a model that has
    one."""
    scale = side / max(image.size)
    image = image.resize([max(1, round(scale * one)) for one in image.size])
    panels = [veiled(image, weights, maps.grid.crop) for weights in maps.weights]
    labels = ["", *words]
    shares = [None] * len(labels) if maps.sentinel is None else [None, *maps.sentinel]
    columns = min(columns, len(labels))
    width, height = image.width + _GAP, image.height + _LABEL + _GAP
    sheet = Image.new("RGB", (columns * width, -(-len(labels) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, (panel, label, share) in enumerate(
        zip([image, *panels], labels, shares, strict=True)
    ):
        x, y = number % columns * width, number // columns * height
        sheet.paste(panel, (x, y))
        below = y + image.height
        pen.text((x + image.width // 2, below + 3), label, fill="black", font=font, anchor="ma")
        if share is not None:
            pen.rectangle((x, below, x + round(float(share) * image.width), below + 2), _SENTINEL)
    return sheet
