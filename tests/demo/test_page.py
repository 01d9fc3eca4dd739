"""The page in a real browser, from the command that opens it to what a visitor sees."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from script_runner import Scripts

if find_spec("gradio") is None:  # seconds to import, and only the command needs it
    pytest.skip("the extra [page] is not installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 60  # until something is a hang, on a busy machine


@pytest.fixture(scope="module")
def address(checkpoints: Any, scripts: Scripts) -> Iterator[str]:
    """Where scripts/demo.py serves two captioners and a language model."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: the page is not driven in a browser")
    given = f"checkpoint=[{checkpoints.one},{checkpoints.two},{checkpoints.text}]"
    folder = checkpoints.text.parents[1]  # the text's token store is written here
    process = scripts.start(folder, "demo", [given, "port=null", "max_mb=0.1"])
    process.wait_until(lambda: "\n" in process.stdout)
    found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout)
    assert found, f"demo.py said {process.stdout!r} and {process.stderr[-2000:]!r}"
    yield found[0]
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=SECONDS)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    """The page in Chromium; in the end it has asked nobody but its own server."""
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.set_default_timeout(1000 * SECONDS)
        asked: set[str | None] = set()
        page.on("request", lambda request: asked.add(urlparse(request.url).hostname))
        page.goto(address)
        yield page
        assert asked - {None, ""} == {"127.0.0.1"}, asked
        browser.close()


def image() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.effect_noise((60, 40), 90).convert("RGB").save(buffer, "JPEG")
    return {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}


def upload(page: Any, file: dict[str, Any]) -> None:
    remove = page.locator("#photo button[aria-label='Remove Image']")
    if remove.count():
        remove.click()
    page.set_input_files("#photo input[type=file]", file)


def captions(page: Any) -> list[list[str]]:
    """What each model says."""
    script = "all => all.map(s => [...s.querySelectorAll('[data-caption]')].map(c => c.innerText))"
    found: list[list[str]] = page.locator("#captions .captions").evaluate_all(script)
    return found


def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def test_an_image_gets_captions_of_both_models(page: Any) -> None:
    upload(page, image())
    wait_until(lambda: len(captions(page)) == 2, "both have spoken")
    assert page.locator("#captions h3").all_inner_texts() == ["one", "two"]
    first, second = captions(page)
    assert len(first) == len(second) == 3 and all(first) and first != second
    # Every word stands over its probability in percent.
    words = page.locator("#captions .word").all_inner_texts()
    assert words and all(re.fullmatch(r"\S+\s+(<1|\d+)|…", word) for word in words), words


def test_a_word_shows_where_it_looked(page: Any) -> None:
    figures = page.locator("#captions figure.attention")
    assert figures.count() == 1  # the first model has one vector of an image
    canvas, below = page.locator("#captions canvas"), figures.locator("figcaption")
    hint = below.inner_text()
    assert "Point at a word" in hint and not canvas.is_visible()
    word = page.locator("#captions [data-map]").first
    word.hover()
    canvas.wait_for(state="visible")
    image, veil = (
        page.locator(f"#captions .frame {one}").bounding_box() for one in ("img", "canvas")
    )
    assert veil == pytest.approx(image, abs=1) and image["width"] > 200
    assert below.inner_text().startswith(word.get_attribute("data-word"))
    assert "on the sentinel" in below.inner_text()
    page.mouse.move(1, 1)
    canvas.wait_for(state="hidden")
    assert below.inner_text() == hint
    word.click()
    page.mouse.move(1, 1)
    assert canvas.is_visible() and word.get_attribute("aria-pressed") == "true"
    word.click()


def test_method_and_settings_change_what_is_shown(page: Any) -> None:
    page.fill("#n_best input[type=number]", "5")
    page.locator("#n_best input[type=number]").blur()
    wait_until(lambda: [len(one) for one in captions(page)] == [5, 5], "five captions are shown")
    page.get_by_label("greedy").check()
    wait_until(lambda: [len(one) for one in captions(page)] == [1, 1], "one caption is shown")
    page.locator("#beam_size").wait_for(state="hidden")
    page.get_by_label("sample", exact=True).check()
    wait_until(lambda: [len(one) for one in captions(page)] == [5, 5], "five are drawn")
    page.locator("#temperature").wait_for(state="visible")
    page.locator("#groups").wait_for(state="hidden")
    before = captions(page)
    page.fill("#seed input[type=number]", "7")
    page.locator("#seed input[type=number]").blur()
    wait_until(lambda: captions(page) not in (before, []), "another seed draws others")


def test_an_example_is_captioned(page: Any) -> None:
    before = captions(page)
    page.locator(".gallery-item, .gallery button").first.click()
    wait_until(lambda: captions(page) not in (before, []), "the example is captioned")


def test_a_broken_upload_gets_one_sentence(page: Any) -> None:
    upload(page, {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    page.wait_for_selector("#captions .problem")
    said = page.inner_text("#captions .problem")
    assert said.startswith("broken.jpg is not an image (JPEG, PNG") and "Traceback" not in said
    assert str(Path("/tmp")) not in said


def test_what_is_too_large_or_no_image_is_refused(page: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, 200_000, dtype=np.uint8).tobytes()
    upload(page, {"name": "huge.jpg", "mimeType": "image/jpeg", "buffer": noise})
    page.get_by_text("maximum allowed size").first.wait_for()
    upload(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"text"})
    page.get_by_text("Only image/* allowed").first.wait_for()


def test_text_grows_while_it_is_read_and_can_be_stopped(page: Any) -> None:
    page.get_by_role("tab", name="Text").click()
    page.fill("#prompt textarea", "the page ")
    page.fill("#text-length input[type=number]", "20000")
    page.locator("#text-length input[type=number]").blur()
    page.click("#write")
    lengths: list[int] = []

    def grown() -> bool:
        lengths.append(len(page.input_value("#text textarea")))
        return len({*lengths}) >= 4

    wait_until(grown, "the text has grown three times")
    assert lengths == sorted(lengths)
    assert page.input_value("#text textarea").startswith("the page ")
    page.click("#stop")
    time.sleep(1)
    stopped = page.input_value("#text textarea")
    time.sleep(1)
    assert page.input_value("#text textarea") == stopped and len(stopped) < 20_000
    # The model is free again: the next visitor need not wait for the rest.
    page.fill("#text-length input[type=number]", "50")
    page.locator("#text-length input[type=number]").blur()
    page.click("#write")
    wait_until(lambda: len(page.input_value("#text textarea")) == 9 + 50, "another is written")


@pytest.mark.parametrize(
    "path", [f"{ROOT}/pyproject.toml", "/etc/passwd", "pyproject.toml", "https://example.com/a.png"]
)
def test_no_other_file_is_served_and_nothing_is_fetched(address: str, path: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{address}gradio_api/file={path}", timeout=SECONDS)
    assert refused.value.code == 403


def test_an_image_of_another_host_is_not_fetched(page: Any, address: str) -> None:
    """An image's address in place of an upload: Gradio would fetch it."""
    import json
    from urllib.request import Request

    config = json.loads(urlopen(f"{address}config", timeout=SECONDS).read())
    event = next(one for one in config["dependencies"] if len(one["inputs"]) == 12)
    values = [3, 3, 0, 2, 0.5, 1, 0, 1, 0, 10]
    file = {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, "greedy", *values], "fn_index": event["id"], "session_hash": "elsewhere"}
    headers = {"Content-Type": "application/json"}
    urlopen(Request(f"{address}gradio_api/queue/join", json.dumps(body).encode(), headers))
    answer = urlopen(f"{address}gradio_api/queue/data?session_hash=elsewhere").read().decode()
    assert "uploaded images only" in answer
