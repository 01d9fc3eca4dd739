"""Attention maps as a page shows them: of each word a few bytes, drawn over the image on demand.

The page's script (attention.js) lays a dark veil over the image, the thinner the more weight a cell
has beside the word's largest.

Letters: W words of a caption, h w the grid's sides.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioner.evaluation.html import element, resource, text

# Left, top, right and bottom of a part of an image, as shares of its width and height.
Area = tuple[float, float, float, float]
WHOLE: Area = (0.0, 0.0, 1.0, 1.0)


def seen_area(width: int, height: int, crop: float | None) -> Area:
    """What an encoder sees of an image: all of it (None), or the square around its centre whose
    side is `crop` times the shorter side."""
    if crop is None:
        return WHOLE
    side = crop * min(width, height)
    x, y = (1 - side / width) / 2, (1 - side / height) / 2
    return x, y, 1 - x, 1 - y


@dataclass(frozen=True)
class WordMaps:
    """Where a model looked for each word of a caption.

    `cells` has of each word the h w weights in base64, a byte each, row after row, 255 for the
    largest, which `largest` has in full; `sentinel` the weights on it, of a model that has one.
    ValueError where the three do not go together.
    """

    rows: int
    columns: int
    cells: list[str]
    largest: list[float]
    sentinel: list[float] | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        count = self.rows * self.columns
        lengths = {len(base64.b64decode(one)) for one in self.cells} | {count}
        sizes = {len(one) for one in (self.cells, self.largest, self.sentinel) if one is not None}
        if lengths != {count} or len(sizes) != 1:
            raise ValueError(f"attention maps of {sorted(lengths)} cells and {sorted(sizes)} words")

    @classmethod
    def of(
        cls,
        weights: np.ndarray,  # [W, h, w]
        sentinel: np.ndarray | None,  # [W]
        *,
        crop: float | None,
    ) -> "WordMaps":
        """From weights in full."""
        flat = weights.reshape(len(weights), weights.shape[1] * weights.shape[2])
        largest = flat.max(1, initial=0.0)
        scaled = np.rint(255 * flat / np.maximum(largest, 1e-12)[:, None]).astype(np.uint8)
        return cls(
            rows=weights.shape[1],
            columns=weights.shape[2],
            cells=[base64.b64encode(one.tobytes()).decode("ascii") for one in scaled],
            largest=[round(float(x), 4) for x in largest],
            sentinel=None if sentinel is None else [round(float(x), 4) for x in sentinel],
            crop=crop,
        )

    def list_attributes(self, width: int, height: int) -> dict[str, Any]:
        """What the element around the words must have; the image's sides in any unit."""
        area = " ".join(f"{share:.4f}" for share in seen_area(width, height, self.crop))
        return {"data_area": area, "data_columns": self.columns}

    def word_attributes(self, place: int, word: str) -> dict[str, Any]:
        """What the element of a word must have: the first of a caption can be reached by Tab."""
        found: dict[str, Any] = {
            "data_word": word,
            "data_map": self.cells[place],
            "data_largest": self.largest[place],
            "role": "button",
            "tabindex": -1 if place else 0,
        }
        if self.sentinel is not None:
            found["data_sentinel"] = self.sentinel[place]
            found["style"] = f"--sentinel:{self.sentinel[place]:.3f}"
        return found


def attended_image(source: str, name: str, *, width: int, height: int, hint: str = "") -> str:
    """The image that maps are drawn over, and below it `hint`, or what the script says of a word.

    It must lie in an element with the attribute data-attended, together with the captions; the
    style sheet's --size is its longer side.
    """
    image = element("img", alt=name, decoding="async", src=source)
    style = f"--ratio:{width / height:.4f}"
    frame = element("div", image, element("canvas"), class_="frame", style=style)
    return element("figure", frame, text("figcaption", hint, data_hint=hint), class_="attention")


def attention_style() -> str:
    """The style sheet of maps."""
    return resource(__package__, "attention.css")


def attention_script() -> str:
    """The script that draws them."""
    return resource(__package__, "attention.js")
