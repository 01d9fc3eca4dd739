"""A text shaded by how unexpected each token was to a language model, as one HTML page."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from captioner.evaluation.html import element, resource, text, write_page

FULL_SHADE = 8.0  # bits from which the shade grows no darker: a probability of 1 in 256
_ARROW = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"


def write_surprise_page(
    path: Path | str,
    *,
    title: str,
    tokens: Iterable[tuple[str, float]],
    facts: Mapping[str, object],
) -> None:
    """Write each token's text over a shade of its surprise (nats), its bits shown on hovering.

    `facts` are listed above the text. DataError when it cannot be written.
    """
    write_page(path, title, _body(tokens, facts), style=resource(__package__, "surprise.css"))


def _body(tokens: Iterable[tuple[str, float]], facts: Mapping[str, object]) -> Iterator[str]:
    yield element("dl", *(text("dt", k) + text("dd", v) + "\n" for k, v in facts.items())) + "\n"
    key = (_shaded(f"{bits} bits", bits * math.log(2)) for bits in (0, 1, 2, 4, 8))
    yield element("p", *key, class_="key") + "\n<pre>"
    for token, nats in tokens:
        yield _shaded(token, nats)
    yield "</pre>\n"


def _shaded(token: str, nats: float) -> str:
    bits = nats / math.log(2)
    shade = min(1.0, max(0.0, bits / FULL_SHADE))
    visible = token.replace("\n", _ARROW)  # a line break has no width of its own to be shaded
    return text("span", visible, style=f"--s:{shade:.2f}", title=f"{bits:.2f} bits")
