"""A validation of a model that attends: panels in TensorBoard, figures, nothing disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_models import F, make_model
from PIL import Image
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import CaptionDataset
from captioner.data.vocabulary import Vocabulary
from captioner.generation import Constraints, greedy
from captioner.inference.attention import RegionGrid
from captioner.inference.captions import CaptionGenerator
from captioner.validation.attention import AttentionMetrics, AttentionViews
from captioner.validation.captions import CaptionValidator

VOCABULARY = Vocabulary(["a", "dog", "cat", "runs", "sits", "on", "mat"], counts=[1] * 11)
FEATURES = torch.randn(5, 6, F, generator=torch.Generator().manual_seed(4))
GRID = RegionGrid(2, 3)


def source(rows: Tensor) -> Tensor:
    return FEATURES[rows]


class Writer:
    def __init__(self) -> None:
        self.images: dict[str, tuple[np.ndarray, int]] = {}

    def add_image(self, name: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC" and pixels.dtype == np.uint8
        self.images[name] = (pixels, step)

    def add_text(self, name: str, text: str, step: int) -> None:
        pass


def make(folder: Path, metrics: AttentionMetrics | None, **settings: Any) -> CaptionValidator:
    images = [
        CaptionedImage(f"{k}.png", folder / f"{k}.png", ("a dog", "a cat"), k) for k in range(5)
    ]
    for image in images:
        Image.new("RGB", (30, 20), "red").save(image.path)
    constraints = Constraints(bos=1, eos=2, max_length=4, min_length=2, banned=[0, 1, 3])
    generator = CaptionGenerator(
        make_model("adaptive"), VOCABULARY, partial(greedy, constraints=constraints)
    )
    return CaptionValidator(
        generator=generator,
        images=images,
        dataset=CaptionDataset(images, vocabulary=VOCABULARY, source=source, max_length=10),
        batch_size=2,
        attention=AttentionViews(generator, images, source, GRID, 2, metrics),
        **settings,
    )


def test_every_caption_is_measured_with_its_own_maps(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def metrics(captions: Mapping[str, Any]) -> dict[str, float]:
        seen.update(captions)
        return {"looked": 7.0}

    validator = make(tmp_path, metrics)
    measured = validator(3)
    assert measured["attention"] == {"looked": 7.0} and list(seen) == [f"{k}.png" for k in range(5)]
    generator = validator.generator
    captions = generator.captions(FEATURES)
    for (words, maps), one, image in zip(seen.values(), captions, FEATURES, strict=True):
        assert words == [word for word, _ in one[0].words]
        ((alone,),) = generator.attention_maps(image[None], [one[:1]], GRID)
        np.testing.assert_allclose(maps.weights, alone.weights, atol=1e-6)
        np.testing.assert_allclose(maps.sentinel, alone.sentinel, atol=1e-6)


def test_the_images_shown_have_their_panels(tmp_path: Path) -> None:
    writer = Writer()
    make(tmp_path, None, writer=writer, shown=3)(17)
    panels = {name: one for name, one in writer.images.items() if name.startswith("attention/")}
    assert list(panels) == ["attention/0", "attention/1", "attention/2"]
    pixels, step = panels["attention/1"]
    assert step == 17 and pixels.shape[2] == 3 and pixels.shape[1] > 2 * 112


def test_no_image_need_be_shown(tmp_path: Path) -> None:
    writer = Writer()
    validator = make(tmp_path, None, writer=writer, shown=0)
    validator.attention = replace(validator.attention, source=never)  # type: ignore[type-var]
    validator(0)
    assert not writer.images


def never(rows: Tensor) -> Tensor:
    raise AssertionError("no image is to be read")


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_left_as_found(tmp_path: Path, training: bool) -> None:
    validator = make(tmp_path, lambda _: {}, writer=Writer(), shown=1)
    model = validator.generator.model.train(training)
    state = torch.get_rng_state()
    first = validator(0)
    assert torch.equal(torch.get_rng_state(), state) and model.training == training
    assert validator(1) == first
