"""Attention maps in the report: their bytes, their place in the files, and what a browser draws."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.errors import DataError
from captioner.evaluation.attention import WHOLE, WordMaps, seen_area
from captioner.evaluation.metrics import ScoringOptions, measure
from captioner.evaluation.records import (
    ImageRecord,
    RunRecord,
    ShownCaption,
    images_file,
    load_record,
    make_record,
    save_record,
)
from captioner.evaluation.report import write_report
from captioner.evaluation.scores import present

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ROWS, COLUMNS = 2, 3
WORDS = ["a", "dog", "runs"]
REFERENCES = [["a dog runs"], ["a cat sits on a mat"]]


def weights(*largest: int) -> np.ndarray:
    """Of each word 0.6 on one cell, 0.3 on the next, the rest even."""
    found = np.full((len(largest), ROWS * COLUMNS), 0.1 / 4)
    for word, cell in enumerate(largest):
        found[word, cell] = 0.6
        found[word, (cell + 1) % (ROWS * COLUMNS)] = 0.3
    return found.reshape(-1, ROWS, COLUMNS)


def some_maps(*, sentinel: bool = False, crop: float | None = None) -> WordMaps:
    own = np.array([0.25, 0.5, 0.75]) if sentinel else None
    return WordMaps.of(weights(0, 2, 4), own, crop=crop)


def make_run(folder: Path, name: str, maps: list[WordMaps | None]) -> RunRecord:
    images = []
    for number, (one, references) in enumerate(zip(maps, REFERENCES, strict=True)):
        file = folder / f"{number}.png"
        Image.new("RGB", (300, 200), (200, 200, 200)).save(file)
        words = [(word, 0.5) for word in WORDS]
        shown = [ShownCaption(" ".join(WORDS), words, -1.0, one), ShownCaption("no words known")]
        images.append(ImageRecord(f"i{number}", shown, references, str(file)))
    captions = [" ".join(WORDS)] * 2
    by_id = {i.image_id: i.references for i in images}
    best = {i.image_id: i.captions[0].text for i in images}
    measured = measure(REFERENCES, captions)
    scores = present(measured, by_id, best, ScoringOptions(samples=20))
    return make_record(name, scores, images, measured)


def test_what_an_encoder_sees_of_an_image() -> None:
    assert seen_area(300, 200, None) == WHOLE
    assert seen_area(200, 200, 0.5) == (0.25, 0.25, 0.75, 0.75)
    assert seen_area(400, 200, 1.0) == (0.25, 0.0, 0.75, 1.0)


def test_the_area_is_the_transforms_to_a_pixel() -> None:
    from captioner.models.transforms import ImageTransform

    for resize, size in ((256, 224), (224, 224), ("squash", 64)):
        transform = ImageTransform(size=size, resize=resize)  # type: ignore[arg-type]
        for width, height in ((500, 375), (333, 500), (640, 360)):
            scaled, left, top = transform.scaled(width, height)
            edges = (left, top, left + size, top + size)
            found = seen_area(width, height, transform.crop)
            for edge, share, side in zip(edges, found, scaled * 2, strict=True):
                assert abs(edge - share * side) <= 1


def test_a_map_is_a_byte_a_cell_of_the_words_largest() -> None:
    maps = some_maps(sentinel=True)
    first = np.frombuffer(base64.b64decode(maps.cells[0]), np.uint8)
    assert first.tolist() == [255, 128, 11, 11, 11, 11]
    assert maps.largest == [0.6] * 3 and maps.sentinel == [0.25, 0.5, 0.75]
    assert WordMaps.of(np.zeros((0, 2, 3)), None, crop=None).cells == []
    assert WordMaps.of(np.zeros((1, 2, 3)), None, crop=None).largest == [0.0]
    with pytest.raises(ValueError, match=r"and \[2, 3\] words"):
        replace(maps, largest=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"\[6, 8\] cells"):
        replace(maps, columns=4)


def test_maps_are_kept_with_the_images_and_read_back(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", [some_maps(crop=0.875), None])
    save_record(tmp_path / "scores.json", run)
    read = [image.captions[0] for image in load_record(tmp_path).images]
    assert read == [image.captions[0] for image in run.images] and read[0].maps is not None
    entries = json.loads(images_file(tmp_path / "scores.json").read_text())["images"]
    assert "sentinel" not in entries[0]["captions"][0]["maps"]
    # What has no maps is written as it always was.
    assert list(entries[1]["captions"][0]) == ["text", "words", "log_prob"]


def test_damaged_maps_are_refused_by_the_files_name(tmp_path: Path) -> None:
    save_record(tmp_path / "scores.json", make_run(tmp_path, "run", [some_maps(), None]))
    file = images_file(tmp_path / "scores.json")
    file.write_text(file.read_text().replace('"rows": 2', '"rows": 3'))
    with pytest.raises(DataError, match=r"scores_images\.json: .*maps cannot be used"):
        load_record(tmp_path)
    with pytest.raises(ValueError, match="3 attention maps of a caption of 1 words"):
        ShownCaption("a", [("a", 0.5)], maps=some_maps())


def test_a_report_without_maps_speaks_of_none(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [make_run(tmp_path, "run", [None, None])], title="t")
    body = (tmp_path / "r.html").read_text().split("</style>")[1].split("<script>")[0]
    assert "attention" not in body and "data-map" not in body and "<canvas" not in body


def test_each_word_of_the_images_shown_has_its_map(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", [some_maps(sentinel=True), some_maps(sentinel=True)])
    write_report(tmp_path / "r.html", [run], title="t", images=1)
    text = (tmp_path / "r.html").read_text().split("</style>")[1].split("<script>")[0]
    assert re.findall('data-map="([^"]*)"', text) == run.images[0].captions[0].maps.cells  # type: ignore[union-attr]
    assert text.count("<canvas") == 1 and "sentinel" in text and not re.search(r"https?:", text)


# -- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report of two runs in Chromium; the first looks at the middle of the image only."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here: the report is not opened in a browser")
    folder = tmp_path_factory.mktemp("report")
    runs = [
        make_run(folder, "one", [some_maps(crop=0.5), None]),
        make_run(folder, "two", [some_maps(sentinel=True), None]),
    ]
    write_report(folder / "r.html", runs, title="t")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.set_default_timeout(120_000)
        page.goto((folder / "r.html").as_uri())
        yield page
        browser.close()


def veil(page: Any) -> list[int]:
    """The opacity of the first image's veil, cell by cell; [] where it is not shown."""
    script = """() => {
      const canvas = document.querySelector("canvas");
      if (getComputedStyle(canvas).visibility !== "visible") return [];
      const { width, height } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
      return Array.from(data).filter((_, place) => place % 4 === 3);
    }"""
    found: list[int] = page.evaluate(script)
    return found


def place(page: Any, selector: str) -> dict[str, float]:
    found: dict[str, float] = page.locator(selector).first.bounding_box()
    return found


def test_a_click_draws_the_words_map_over_what_the_encoder_sees(page: Any) -> None:
    assert veil(page) == []
    page.get_by_role("button", name="dog").first.click()
    page.mouse.move(1, 1)  # what was clicked stays
    shown = veil(page)
    assert len(shown) == ROWS * COLUMNS
    assert shown[2] == 0 and 80 < shown[3] < 110 and shown[0] == max(shown) > 150
    image, canvas = place(page, ".frame img"), place(page, "canvas")
    assert image["width"] / image["height"] == pytest.approx(1.5, rel=0.02)
    assert canvas["height"] == pytest.approx(image["height"] / 2, abs=1)
    assert canvas["width"] == pytest.approx(canvas["height"], abs=1)
    middle = canvas["x"] + canvas["width"] / 2
    assert middle == pytest.approx(image["x"] + image["width"] / 2, abs=1)
    said = page.locator(".attention figcaption").first.inner_text()
    assert said == "dog at most 60 % on one of 6 regions"


def test_the_other_runs_words_are_drawn_over_the_same_image(page: Any) -> None:
    page.get_by_role("button", name="runs").nth(1).click()
    page.mouse.move(1, 1)
    assert veil(page).index(0) == 4
    image, canvas = place(page, ".frame img"), place(page, "canvas")
    assert canvas == pytest.approx(image, abs=1)
    assert page.locator(".attention figcaption").first.inner_text().endswith("75 % on the sentinel")
    assert page.locator("[aria-pressed=true]").count() == 1


def test_keys_go_from_word_to_word_and_a_second_click_ends_it(page: Any) -> None:
    page.get_by_role("button", name="a", exact=True).nth(1).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # there is no further word
    page.mouse.move(1, 1)
    assert veil(page).index(0) == 4
    page.keyboard.press("Enter")
    assert veil(page) == [] and page.locator(".attention figcaption").first.inner_text() == ""


def test_pointing_at_a_word_shows_it_until_the_pointer_leaves(page: Any) -> None:
    page.get_by_role("button", name="runs").first.hover()
    assert veil(page).index(0) == 4
    page.mouse.move(1, 1)
    assert veil(page) == []
