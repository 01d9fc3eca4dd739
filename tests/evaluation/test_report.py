"""The report: its text, that it stands alone, and that its controls work in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from captioner.errors import DataError, ImageError
from captioner.evaluation.metrics import ScoringOptions, measure
from captioner.evaluation.records import ImageRecord, RunRecord, ShownCaption, make_record
from captioner.evaluation.report import write_report
from captioner.evaluation.scores import present

VOID = {"meta", "img", "input", "br"}
HOSTILE = "<script>alert('x')</script> & \"y\""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
REFERENCES = [["a dog runs in a park", HOSTILE], ["a red cat sits"], ["two birds fly over water"]]
CAPTIONS = ["a dog runs in a park", "a dog sits", "birds"]


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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words += data


def make_run(folder: Path, name: str, captions: list[str]) -> RunRecord:
    images = []
    for number, (caption, references) in enumerate(zip(captions, REFERENCES, strict=True)):
        file = folder / f'image "{number}" <x>.png'
        Image.new("RGB", (600, 300), (200, 30, 30 * number)).save(file)
        words = [(word, 0.05 + 0.1 * place) for place, word in enumerate(caption.split())]
        shown = [ShownCaption(caption, words, -1.25), ShownCaption(HOSTILE, [], -7.5)]
        images.append(ImageRecord(f"i{number}", shown, references, str(file)))
    measured = measure(REFERENCES, captions)
    by_id = {i.image_id: i.references for i in images}
    hypotheses = {i.image_id: i.captions[0].text for i in images}
    options = ScoringOptions(samples=20)
    scores = present(measured, by_id, hypotheses, options, card={"beam": "3 <w>"})
    scores["sanity"] = {"warnings": [f"odd {HOSTILE}"], "rows": {"human": {"BLEU-1": 64.4}}}
    return make_record(name, scores, images, measured)


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return make_run(tmp_path, "Run <1> & co", CAPTIONS)


def test_everything_is_on_the_page_as_text_and_nothing_is_loaded(
    run: RunRecord, tmp_path: Path
) -> None:
    path = tmp_path / "out/report.html"
    write_report(path, [run], title="Title <1>")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.words.count(HOSTILE) == 5  # a reference, three second captions, the warning
    for expected in ("Title <1>", "Run <1> & co", "BLEU-4", "3 <w>", "-1.25", "64.40", "95 %"):
        assert expected in page.words
    assert len([1 for tag, _ in page.tags if tag == "script"]) == 1
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(", text)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert len([1 for tag, _ in page.tags if tag == "svg"]) == 9


def test_words_are_shaded_by_their_probability(run: RunRecord, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [run], title="t")
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    classes = [a["class"] for tag, a in page.tags if tag == "span"]
    assert classes[:4] == ["word p0", "word p1", "word p2", "word p3"]


def test_a_results_file_has_a_page_without_images(run: RunRecord, tmp_path: Path) -> None:
    bare = [ImageRecord(i.image_id, i.captions, i.references, None, i.scores) for i in run.images]
    write_report(
        tmp_path / "r.html", [RunRecord("x", run.scores, bare, run.metrics)], title="t", images=2
    )
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert "Images (2)" in page.words and "img" not in {tag for tag, _ in page.tags}


def test_a_missing_image_file_leaves_the_old_page(run: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    Path(str(run.images[1].file)).unlink()
    with pytest.raises(ImageError, match="image"):
        write_report(path, [run], title="t")
    assert path.read_text() == "old"
    with pytest.raises(DataError, match="one run or two, got 3"):
        write_report(path, [run] * 3, title="t")


# -- in a browser -------------------------------------------------------------------------------


def shown(path: Path, choice: str = "") -> tuple[list[int], str]:
    """The numbers of the visible images in order, and the page after its script has run."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"the page's script needs a browser: none of {', '.join(BROWSERS)} is here")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            f"--user-data-dir={path.parent / 'browser'}",
            f"{path.as_uri()}{choice}",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    page = Page(done.stdout)
    articles = [a for tag, a in page.tags if tag == "article"]
    return [int(str(a["data-number"])) for a in articles if "hidden" not in a], done.stdout


def test_images_are_sorted_filtered_and_searched_in_a_browser(
    run: RunRecord, tmp_path: Path
) -> None:
    path = tmp_path / "r.html"
    write_report(path, [run], title="t")
    everything, text = shown(path)
    assert everything == [0, 1, 2] and "3 of 3 shown" in text
    # m0x4 is ROUGE-L: of the three captions the first is right, the last has least in common.
    assert shown(path, "#sort=m0x4&order=up")[0] == [2, 1, 0]
    assert shown(path, "#sort=m0x4&order=down")[0] == [0, 1, 2]
    assert shown(path, "#search=dog+sits")[0] == [1]
    assert shown(path, "#metric=m0x4&low=99")[0] == [0]
    assert "1 of 3 shown" in shown(path, "#metric=m0x4&low=99")[1]


def test_two_runs_stand_side_by_side_in_a_browser(run: RunRecord, tmp_path: Path) -> None:
    other = make_run(tmp_path, "Run 2", [CAPTIONS[0], "a red cat sits", "water"])
    path = tmp_path / "r.html"
    write_report(path, [run, other], title="t")
    order, text = shown(path, "#sort=d4&order=down")  # by the difference in ROUGE-L
    assert order[0] == 1
    page = Page(text)
    assert "difference" in page.words and "Run 2" in page.words
    assert [a["data-same"] for tag, a in page.tags if tag == "article"].count("1") == 1
