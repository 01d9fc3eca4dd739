"""One HTML page for a run: its scores, the protocol behind them, and pictures with their captions.

The page stands alone: pictures are inside it, there is no script and nothing is loaded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from captioner.data.images import load_image
from captioner.files import atomic_write

_THUMBNAIL = 224  # pixels, the longer side

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
  font-weight: normal; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
article { display: flex; flex-wrap: wrap; gap: 1rem; padding: 1rem 0;
  border-top: 1px solid var(--line); }
img { width: 14rem; height: 14rem; object-fit: contain; }
article > div { flex: 1 1 20rem; min-width: 0; overflow-wrap: anywhere; }
ol, ul { margin: .3rem 0; padding-left: 1.3rem; } ol li:first-child { font-weight: 600; }
small, .references { color: var(--soft); } p { margin: .3rem 0; }
"""


@dataclass(frozen=True)
class ReportRow:
    """One picture: its captions with their log-probabilities (nats), best first; its references."""

    image: Path
    hypotheses: Sequence[tuple[str, float]]
    references: Sequence[str] = ()
    note: str = ""


def write_report(
    path: Path | str,
    *,
    title: str,
    rows: Sequence[ReportRow],
    scores: Mapping[str, float],
    protocol: Mapping[str, str],
) -> None:
    """Write the page, whole or not at all; every text is escaped.

    ImageError when a picture cannot be read, DataError when `path` cannot be written.
    """
    with atomic_write(path, "w") as page:
        page.write(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(title)}</h1>\n"
        )
        shown = {name: f"{value:.4g}" for name, value in scores.items()}
        page.write(_table("Scores", shown, number=True))
        page.write(_table("Protocol", protocol))
        page.write(f"<h2>Pictures ({len(rows)})</h2>\n")
        # Picture by picture: a report of thousands must not stand in memory whole.
        for row in rows:
            page.write(_article(row))
        page.write("</body>\n</html>\n")


def _table(heading: str, entries: Mapping[str, str], *, number: bool = False) -> str:
    if not entries:
        return ""
    kind = ' class="number"' if number else ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td{kind}>{escape(str(value))}</td></tr>\n'
        for name, value in entries.items()
    )
    return f"<h2>{heading}</h2>\n<table>\n{body}</table>\n"


def _article(row: ReportRow) -> str:
    name = escape(row.image.name)
    captions = (
        f"{escape(caption)} <small>{log_prob:.2f}</small>" for caption, log_prob in row.hypotheses
    )
    note = f"<p>{escape(row.note)}</p>\n" if row.note else ""
    references = ""
    if row.references:
        references = f'<div class="references">References{_list("ul", map(escape, row.references))}'
        references += "</div>\n"
    return (
        f'<article>\n<img alt="{name}" src="{_data_uri(row.image)}">\n<div>\n'
        f"<small>{name}; captions with their log-probability</small>\n"
        f"{_list('ol', captions)}{note}{references}</div>\n</article>\n"
    )


def _list(tag: str, items: Iterable[str]) -> str:
    return f"<{tag}>{''.join(f'<li>{item}</li>' for item in items)}</{tag}>\n"


def _data_uri(path: Path) -> str:
    picture = load_image(path)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
