"""Captions as HTML: a bar over every word, as high as the word is probable.

Of a model that attends to regions, a word also shows where on the image it looked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from captioner.evaluation.attention import WordMaps, attended_image
from captioner.evaluation.html import data_uri, element, text
from captioner.inference.captions import Caption

_LONGEST = 480  # pixels, the longer side of the image under the maps
_HINT = "Point at a word, or tap it, to see where the model looked for it."
NOTHING_YET = '<p class="hint">Drop an image, take one, or pick an example.</p>'


def captions_html(
    name: str,
    facts: str,
    captions: Sequence[Caption],
    *,
    image: Image.Image | None = None,
    maps: Sequence[WordMaps] | None = None,
) -> str:
    """One model's captions, best first, under its name; `maps`, of each caption, are drawn over the
    `image`."""
    heading = heading_html(name, facts)
    if image is None or maps is None:
        return element(
            "section", heading, element("ol", *map(_caption, captions)), class_="captions"
        )
    small = image.copy()
    small.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    width, height = small.size
    items = (
        _caption(caption, own, own.list_attributes(width, height))
        for caption, own in zip(captions, maps, strict=True)
    )
    source = data_uri(small, quality=85)
    shown = attended_image(source, "the image", width=width, height=height, hint=_HINT)
    return element(
        "section",
        heading,
        shown,
        element("ol", *items),
        class_="captions",
        data_attended="",
    )


def heading_html(name: str, facts: str) -> str:
    """A model's name and what is known of it."""
    return element("header", text("h3", name), text("p", facts), class_="model")


def problem_html(error: Exception) -> str:
    """One sentence that says what is wrong."""
    return text("p", error, class_="problem", role="alert")


def _caption(
    caption: Caption, maps: WordMaps | None = None, attributes: Mapping[str, object] | None = None
) -> str:
    words = "".join(
        _word(word, p, {} if maps is None else maps.word_attributes(place, word))
        for place, (word, p) in enumerate(caption.words)
    )
    if not caption.finished:
        words += text("span", "…", class_="word cut", title="closed at the greatest length")
    log_prob = f"{caption.log_prob:.2f}".replace("-", "\N{MINUS SIGN}")
    return element(
        "li",
        element("div", words, class_="sentence", data_caption=caption.text, **(attributes or {})),
        text("div", f"log-probability {log_prob}", class_="figures"),
    )


def _word(word: str, p: float, attributes: dict[str, Any]) -> str:
    percent = "<1" if p < 0.005 else f"{100 * p:.0f}"
    parts = "<i></i>", text("b", word), text("small", percent)
    style = ";".join(filter(None, (f"--p:{p:.3f}", attributes.pop("style", None))))
    return element("span", *parts, class_="word", style=style, title=f"{p:.1%}", **attributes)
