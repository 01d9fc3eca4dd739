"""The page in a real browser, from the command that opens it to what a visitor sees, and what it
answers to requests that no browser sends."""

from __future__ import annotations

import http.client
import io
import json
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
    given = f"checkpoint=[{checkpoints.one},{checkpoints.two},{checkpoints.text}]"
    folder = checkpoints.text.parents[1]  # the text's token store is written here
    process = scripts.start(folder, "demo", [given, "port=null", "max_mb=0.1"])
    process.wait_until(lambda: "\n" in process.stdout)
    found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout)
    assert found, f"demo.py said {process.stdout!r} and {process.stderr[-2000:]!r}"
    yield found[0]
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=SECONDS)
    assert "Traceback" not in process.stderr


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    """The page in Chromium; in the end it has asked nobody but its own server."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here: the page is not driven in a browser")
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


# -- requests that the page's own script never sends ----------------------------------------------


def ask(address: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    """The status and the text that answer a POST with these headers and no others but Host."""
    where = urlparse(address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=SECONDS)
    connection.putrequest("POST", f"/gradio_api/{path}")
    given = {"Content-Length": str(len(body))}
    for name, value in {**given, **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


PART = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n'
FORM = "multipart/form-data; boundary=x"


def form(name: str, file: str | None, content: bytes, *, end: bytes = b"\r\n--x--\r\n") -> bytes:
    head = PART.format(name, "" if file is None else f'; filename="{file}"')
    return b"--x\r\n" + head.encode() + content + end


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"text", {"Content_Type": "text/plain"}, 400, "Invalid content type"),
        (b"text", {}, 400, "Invalid content type"),
        (b"text", {"Content_Type": "multipart/form-data"}, 400, "Missing boundary"),
        (b"text", {"Content_Type": FORM}, 400, "Could not parse"),
        (b"--x\r\n" + bytes(5000), {"Content_Type": FORM}, 413, "Headers exceeded"),
        (form("files", None, b"x"), {"Content_Type": FORM}, 400, "request cannot be answered"),
        (b"", {"Content_Type": FORM, "Content_Length": str(10**12)}, 413, "1,000,000,000,000"),
        (b"", {"Content_Type": FORM, "Transfer_Encoding": "chunked"}, 411, "must say how long"),
        (b"", {"Content_Type": FORM, "Content_Length": "-5"}, 400, "."),
        (b"", {"Content_Type": FORM, "Content_Length": "many"}, 400, "."),
    ],
)
def test_a_broken_upload_is_answered_with_a_sentence_and_a_status(
    address: str, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    found, text = ask(address, "upload", body, **headers)
    assert found == status and re.search(said, text), (found, text)
    assert len(text.strip().splitlines()) == 1 and len(text) < 300


def dependency(address: str, inputs: int) -> int:
    """The number of the page's event that has so many inputs."""
    config = json.loads(urlopen(f"{address}config", timeout=SECONDS).read())
    found: int = next(x["id"] for x in config["dependencies"] if len(x["inputs"]) == inputs)
    return found


def happen(address: str, event: int, data: Any, session: str) -> str:
    """What the page is told after an event with these values."""
    body = json.dumps({"data": data, "fn_index": event, "session_hash": session}).encode()
    status, text = ask(address, "queue/join", body, Content_Type="application/json")
    assert status == 200, text
    answer = urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=SECONDS)
    return str(answer.read().decode())


CAPTIONING = [None, "greedy", 3, 3, 0, 2, 0.5, 1, 0, 1, 0, 10]
WRITING = ["the ", 5, 1, 0, 1, 0]


def test_no_value_of_a_field_goes_unanswered(address: str) -> None:
    upload = form("files", "me.jpg", image()["buffer"])
    path = json.loads(ask(address, "upload", upload, Content_Type=FORM)[1])[0]
    file = {"path": path, "orig_name": "me.jpg", "meta": {"_type": "gradio.FileData"}}
    kinds = [[1], "text" * 600, 1e19, None, {**file, "path": f"{ROOT}/docs/page.jpg"}]
    for values, number in (([file, *CAPTIONING[1:]], 12), (WRITING, 6)):
        event = dependency(address, number)
        said = happen(address, event, values, f"well-{number}")
        assert '"success":true' in said and "problem" not in said, said
        for place in range(number):
            # What each kind of value does to each setting is tested in test_models.py.
            for hostile in kinds if place == 0 else kinds[place % 4 :][:1]:
                if hostile is None and values[place] is file:
                    continue  # no image yet
                changed = [*values[:place], hostile, *values[place + 1 :]]
                said = happen(address, event, changed, f"{number}-{place}-{id(hostile)}")
                told = "role=" in said or "cannot be answered" in said
                assert told and "Traceback" not in said, (place, hostile, said)
        for data in ([], [1]):
            said = happen(address, event, data, f"{number}-{data}".replace(" ", ""))
            assert "cannot be answered" in said, (data, said)


def test_an_upload_that_is_no_whole_picture_is_answered(address: str) -> None:
    event = dependency(address, 12)
    png = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(png, "PNG", compress_level=0)
    changed = bytearray(png.getvalue())
    changed[60] ^= 1  # a pixel, of which the checksum then differs
    bomb = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(bomb, "PNG")
    pictures = {
        "empty.png": (b"", "it starts|file is empty"),
        "cut.jpg": (image()["buffer"][:300], "may be damaged"),
        "changed.png": (bytes(changed), "checksum"),
        "bomb.png": (bomb.getvalue(), "too large an image"),
        "page.svg": (b"<svg onload=alert(1)>", "is not an image"),
    }
    for name, (content, expected) in pictures.items():
        upload = form("files", name, content)
        path = json.loads(ask(address, "upload", upload, Content_Type=FORM)[1])[0]
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        said = happen(address, event, [file, *CAPTIONING[1:]], name)
        assert re.search(f"{name}[^<]*({expected})", said), said


def test_an_image_of_another_host_is_not_fetched(address: str) -> None:
    """An image's address in place of an upload: Gradio would fetch it."""
    file = {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}
    said = happen(address, dependency(address, 12), [file, *CAPTIONING[1:]], "elsewhere")
    assert "uploaded images only" in said
