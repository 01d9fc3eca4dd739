"""A text shaded by how unexpected each token was to a language model, as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from captioner.files import atomic_write

FULL_SHADE = 8.0  # bits from which the shade grows no darker: a chance of 1 in 256

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } dl { display: grid; grid-template-columns: max-content 1fr;
  gap: .1rem 1rem; } dd { margin: 0; overflow-wrap: anywhere; }
pre { font: 14px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.key span { padding: 0 .4rem; }
span { background: rgb(230 70 30 / var(--s)); }
"""


def write_surprise_page(
    path: Path | str,
    *,
    title: str,
    tokens: Iterable[tuple[str, float]],
    facts: Mapping[str, object],
) -> None:
    """Write each token's text over a shade of its surprise (nats), its bits told on hovering.

    `facts` are listed above the text. The page stands alone: no script, nothing loaded. DataError
    when it cannot be written.
    """
    with atomic_write(path, "w") as page:
        page.write(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(title)}</h1>\n<dl>\n"
        )
        for name, value in facts.items():
            page.write(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>\n")
        key = "".join(_shaded(f"{bits} bits", bits * math.log(2)) for bits in (0, 1, 2, 4, 8))
        page.write(f'</dl>\n<p class="key">{key}</p>\n<pre>')
        for text, nats in tokens:
            page.write(_shaded(text, nats))
        page.write("</pre>\n</body>\n</html>\n")


def _shaded(text: str, nats: float) -> str:
    bits = nats / math.log(2)
    shade = min(1.0, max(0.0, bits / FULL_SHADE))
    # A line's end has no width of its own to be shaded.
    visible = escape(text).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
    return f'<span style="--s:{shade:.2f}" title="{bits:.2f} bits">{visible}</span>'
