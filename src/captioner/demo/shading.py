"""Captions as HTML: a bar over every word, as high as the word is probable."""

from collections.abc import Sequence

from captioner.evaluation.html import element, text
from captioner.inference.captions import Caption

NOTHING_YET = '<p class="hint">Drop an image, take one, or pick an example.</p>'


def captions_html(name: str, facts: str, captions: Sequence[Caption]) -> str:
    """One model's captions, best first, under its name."""
    items = element("ol", *map(_caption, captions))
    return element("section", heading_html(name, facts), items, class_="captions")


def heading_html(name: str, facts: str) -> str:
    """A model's name and what is known of it."""
    return element("header", text("h3", name), text("p", facts), class_="model")


def problem_html(error: Exception) -> str:
    """One sentence that says what is wrong."""
    return text("p", error, class_="problem", role="alert")


def _caption(caption: Caption) -> str:
    words = "".join(_word(word, p) for word, p in caption.words)
    if not caption.finished:
        words += text("span", "…", class_="word cut", title="closed at the greatest length")
    log_prob = f"{caption.log_prob:.2f}".replace("-", "\N{MINUS SIGN}")
    return element(
        "li",
        element("div", words, class_="sentence", data_caption=caption.text),
        text("div", f"log-probability {log_prob}", class_="figures"),
    )


def _word(word: str, p: float) -> str:
    percent = "<1" if p < 0.005 else f"{100 * p:.0f}"
    parts = "<i></i>", text("b", word), text("small", percent)
    return element("span", *parts, class_="word", style=f"--p:{p:.3f}", title=f"{p:.1%}")
