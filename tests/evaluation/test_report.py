from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from captioner.errors import DataError, ImageError
from captioner.evaluation.report import ReportRow, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects the text and the tags, and checks that each tag is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / 'a "b" <c>.png'
    Image.new("RGB", (600, 300), (200, 30, 30)).save(path)
    return path


def write(path: Path, *rows: ReportRow) -> Page:
    write_report(
        path,
        title="Run <1> & co",
        rows=rows,
        scores={"BLEU-4": 18.456789},
        protocol={"beam": "3 <wide>"},
    )
    return Page(path.read_text(encoding="utf-8"))


def test_everything_given_is_on_the_page_as_text(picture: Path, tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script> & \"y\""
    page = write(
        tmp_path / "out" / "report.html",
        ReportRow(
            picture, [("a red plane", -1.5), (hostile, -2.25)], ["eine Fläche", hostile], hostile
        ),
    )
    assert page.words.count(hostile) == 3
    for text in ("Run <1> & co", "BLEU-4", "18.46", "3 <wide>", "a red plane", "-1.50", "-2.25"):
        assert text in page.words
    assert "eine Fläche" in page.words
    assert picture.name in page.words
    assert "script" not in {tag for tag, _ in page.tags}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [picture.name]


def test_pictures_are_thumbnails_inside_the_page(picture: Path, tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", ReportRow(picture, [("a", -1.0)]))
    (source,) = (attributes["src"] for tag, attributes in page.tags if tag == "img")
    assert source is not None
    head, _, body = source.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as thumbnail:
        assert thumbnail.size == (224, 112)
        assert thumbnail.format == "JPEG"


def test_the_page_loads_nothing(picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    page = write(path, ReportRow(picture, [("a", -1.0)], ["b"]))
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(", path.read_text(encoding="utf-8"))


def test_a_run_without_pictures_still_has_its_page(tmp_path: Path) -> None:
    assert "Pictures (0)" in write(tmp_path / "report.html").words


def test_a_lost_picture_leaves_the_old_page(picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ImageError, match="lost"):
        write(path, ReportRow(picture, [("a", -1.0)]), ReportRow(tmp_path / "lost.png", []))
    assert path.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted([path, picture])


def test_a_page_that_cannot_be_written_is_named(picture: Path) -> None:
    with pytest.raises(DataError, match=r"report\.html"):
        write(picture / "report.html")
