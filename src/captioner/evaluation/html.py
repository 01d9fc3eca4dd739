"""The HTML of every page that the package writes: self-contained, nothing loaded, text escaped."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image

from captioner.files import atomic_write

_VOID = frozenset(("img", "input"))  # elements without a closing tag


def page(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> Iterator[str]:
    """The pieces of a page whose `body` is ready HTML; `style` is added to page.css."""
    head, end = resource(__package__, "page.html").split("$body\n")
    style = resource(__package__, "page.css") + style
    yield Template(head).substitute(title=escape(title), style=style)
    yield from body
    yield (f"<script>\n{script}</script>\n" if script else "") + end


def write_page(
    path: Path | str, title: str, body: Iterable[str], *, style: str = "", script: str = ""
) -> None:
    """Write a page piece by piece, whole or not at all; DataError when it cannot be written."""
    with atomic_write(path, "w") as file:
        file.writelines(page(title, body, style=style, script=script))


def resource(package: str, name: str) -> str:
    """A text file of a package: a style sheet or a script."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def data_uri(image: Image.Image, *, quality: int = 75) -> str:
    """An RGB image as a JPEG inside the page."""
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def element(tag: str, *content: str, **attributes: object) -> str:
    """An element around ready HTML; attributes are escaped, and left out where None.

    In their names class_ stands for class and data_run for data-run.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{named}>" + ("" if tag in _VOID else f"{''.join(content)}</{tag}>")


def text(tag: str, content: object, **attributes: object) -> str:
    """An element around a text, which is escaped."""
    return element(tag, escape(str(content)), **attributes)


def listing(tag: str, items: Iterable[str]) -> str:
    """A list, ul or ol, of ready HTML."""
    return element(tag, *(element("li", item) for item in items)) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "number") -> str:
    """A table of texts; the first of a row is its heading, the others are cells of class `kind`.

    Where it is wider than the page it is scrolled, and numbers stay on one line.
    """
    head = element("tr", *(text("th", one) for one in heads))
    cells = (
        [text("th", first, scope="row"), *(text("td", one, class_=kind) for one in rest)]
        for first, *rest in rows
    )
    body = "\n".join(element("tr", *row) for row in cells)
    whole = element("table", element("thead", head), element("tbody", body), class_=kind)
    return element("div", whole, class_="scroll")
