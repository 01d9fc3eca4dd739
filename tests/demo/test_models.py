"""What the demo does, without the browser: captions, growing text, uploads, settings, HTML."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config
from PIL import Image

from captioner.demo.examples import example_images
from captioner.demo.models import facts, load_models, read_upload
from captioner.demo.settings import (
    CAPTION_SETTINGS,
    METHODS,
    TEXT_DEFAULTS,
    TEXT_SETTINGS,
    caption_defaults,
    checked,
    generation_values,
)
from captioner.demo.shading import captions_html, problem_html
from captioner.errors import ConfigError, DataError, ImageError
from captioner.inference.text import TextGenerator

CONFIGS = Path(__file__).parents[2] / "configs"
HOSTILE: list[Any] = [None, "text", "5", [1], {}, 1e19, float("nan"), float("inf")]
CPU = torch.device("cpu")
IMAGE = Image.effect_noise((40, 40), 80).convert("RGB")


def settings(*overrides: str) -> Any:
    return compose_config("demo", ["checkpoint=x", *overrides], configs=CONFIGS).generation


def defaults(configured: Any) -> tuple[str, dict[str, float]]:
    return caption_defaults(dataclasses.asdict(configured))


def configure(configured: Any, method: str, values: dict[str, float]) -> Any:
    return dataclasses.replace(configured, **generation_values(method, values))


def test_checkpoints_are_known_for_what_they_are(checkpoints: Any) -> None:
    given = [str(checkpoints.text), str(checkpoints.one), str(checkpoints.two)]
    models = load_models(given, device=CPU)
    assert [model.name for model in models.captioners] == ["one", "two"]
    assert models.writer is not None and "characters" in facts(models.writer)
    with pytest.raises(ConfigError, match="at most two captioners and one"):
        load_models([*given, given[1]], device=CPU)


def test_every_method_gives_captions_whose_words_have_their_probabilities(
    checkpoints: Any,
) -> None:
    (model,) = load_models([str(checkpoints.one)], device=CPU).captioners
    method, values = defaults(settings())
    assert method == "beam"
    for method in METHODS:
        generation = configure(settings(), method, {**values, "n_best": 2, "max_length": 6})
        captions = model.captions(IMAGE, generation)
        assert len(captions) == (1 if method == "greedy" else 2)
        for caption in captions:
            words = sum(math.log(p) for _, p in caption.words)
            # The end has a probability too, where the caption has an end.
            assert caption.log_prob <= words + 1e-4
            assert caption.finished or caption.log_prob == pytest.approx(words, abs=1e-4)
    asked = settings("generation.rerank=consensus", "generation.document_frequencies=train")
    assert len(model.captions(IMAGE, configure(asked, "beam", {**values, "n_best": 2}))) == 2
    assert model.trained.training_frequencies.images > 0


def test_settings_out_of_bounds_are_refused_by_name() -> None:
    _, values = defaults(settings())
    with pytest.raises(ConfigError, match="Beams must be from 1 to 20, got 1e\\+06"):
        configure(settings(), "beam", {**values, "beam_size": 1e6})
    with pytest.raises(ConfigError, match="groups must divide"):
        configure(settings(), "diverse beam", {**values, "beam_size": 5, "groups": 2})
    with pytest.raises(ConfigError, match="method must be one of"):
        configure(settings(), "best", values)
    with pytest.raises(ConfigError, match="Length must be from 1 to"):
        checked(TEXT_SETTINGS, {**TEXT_DEFAULTS, "length": 10**9})


def test_a_setting_that_is_no_number_is_refused_by_name() -> None:
    captions = defaults(settings())[1]
    for group, values in ((CAPTION_SETTINGS, captions), (TEXT_SETTINGS, TEXT_DEFAULTS)):
        for setting, value in itertools.product(group, HOSTILE):
            with pytest.raises(ConfigError, match=re.escape(f"{setting.label} must be ")):
                checked(group, {**values, setting.key: value})


@pytest.mark.parametrize(
    "generation", [[], ["generation=greedy"], ["generation=sample"], ["generation=diverse_beam"]]
)
def test_the_demo_starts_as_configured(generation: list[str]) -> None:
    configured = settings(*generation)
    found = configure(configured, *defaults(configured))
    asked = ("method", "beam_size", "length_penalty", "n_best", "top_k", "top_p", "max_length")
    assert all(getattr(found, key) == getattr(configured, key) for key in asked)
    assert {setting.key for setting in CAPTION_SETTINGS} == defaults(configured)[1].keys()


def test_text_grows_to_what_the_generator_writes_and_closing_it_stops_the_writing(
    checkpoints: Any,
) -> None:
    writer = load_models([str(checkpoints.text)], device=CPU).writer
    assert writer is not None
    texts = list(writer.writes("the ", length=300, seed=3))
    generator = TextGenerator(writer.trained.model, writer.trained.codec)
    assert texts[-1] == "the " + generator.samples("the ", length=300, seed=3)[0].text
    assert texts[0] == "the " and len(texts) > 2
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))

    threads = threading.active_count()
    begun = writer.writes("the ", length=10**6)
    assert next(begun) == "the " and len(next(begun)) > 4
    begun.close()  # would take minutes if the sampler had to come to its end
    assert threading.active_count() == threads
    with pytest.raises(ConfigError, match="temperature"):
        list(writer.writes("the ", length=5, temperature=-1.0))


def test_uploads_are_opened_upright_or_refused_by_the_name_they_came_with(tmp_path: Path) -> None:
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "a", "JPEG", exif=exif)
    assert read_upload(tmp_path / "a", "me.jpg").size == (20, 30)
    (tmp_path / "b").write_bytes(b"%PDF-1.4")
    with pytest.raises(ImageError, match=r"^me\.jpg is not an image \(JPEG, PNG"):
        read_upload(tmp_path / "b", "me.jpg")
    Image.new("RGB", (30, 20)).save(tmp_path / "c", "EPS")  # would be given to Ghostscript
    with pytest.raises(ImageError, match=r"^me\.eps is not an image"):
        read_upload(tmp_path / "c", "me.eps")
    Image.new("1", (10_000, 6_000)).save(tmp_path / "d", "PNG")
    with pytest.raises(ImageError, match=r"^me\.png is too large an image"):
        read_upload(tmp_path / "d", "me.png")


def test_html_says_what_the_captions_say_and_escapes_it(checkpoints: Any) -> None:
    (model,) = load_models([str(checkpoints.one)], device=CPU).captioners
    _, values = defaults(settings())
    captions = model.captions(IMAGE, configure(settings(), "beam", values))
    html = captions_html("a<b", "facts", captions)
    assert re.findall('data-caption="([^"]*)"', html) == [caption.text for caption in captions]
    heights = [float(p) for p in re.findall(r"--p:([\d.]+)", html)]
    assert heights == pytest.approx([p for c in captions for _, p in c.words], abs=1e-3)
    assert "a&lt;b" in html and "<b " not in problem_html(DataError("<b onclick=x>"))


def test_words_of_a_model_that_attends_have_maps_over_the_image(checkpoints: Any) -> None:
    given = [str(checkpoints.one), str(checkpoints.two)]
    pooled, attends = load_models(given, device=CPU).captioners
    _, values = defaults(settings())
    generation = configure(settings(), "beam", {**values, "n_best": 2})
    captions, maps = attends.captions_and_maps(IMAGE, generation)
    assert captions == attends.captions(IMAGE, generation) and maps is not None
    assert [len(one.cells) for one in maps] == [len(one.words) for one in captions]
    assert maps[0].rows == maps[0].columns == 8 and maps[0].sentinel is not None
    html = captions_html("x", "facts", captions, image=IMAGE, maps=maps)
    assert re.findall('data-map="([^"]*)"', html) == [x for one in maps for x in one.cells]
    assert html.count("<canvas") == 1 and 'src="data:image/jpeg' in html
    styles = re.findall(r'style="(--p:[^"]*)"', html)
    assert all(re.fullmatch(r"--p:[\d.]+;--sentinel:[\d.]+", one) for one in styles)

    captions, none = pooled.captions_and_maps(IMAGE, generation)
    assert none is None
    plain = captions_html("x", "facts", captions, image=IMAGE, maps=none)
    assert plain == captions_html("x", "facts", captions) and "canvas" not in plain


def test_examples_need_no_download(checkpoints: Any, tmp_path: Path) -> None:
    models = load_models([str(checkpoints.one)], device=CPU)
    paths = example_images(models, tmp_path)
    assert len(paths) == 6 and all(Image.open(path).size == (32, 32) for path in paths)
