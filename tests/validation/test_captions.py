"""The loss computed directly, the captions that are decoded, and nothing disturbed by either."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import CaptionDataset
from captioner.data.vocabulary import Vocabulary
from captioner.generation import Constraints, greedy
from captioner.inference.captions import CaptionGenerator
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.validation.captions import CaptionValidator
from captioner.validation.scores import CaptionScorer

WORDS = ["a", "dog", "cat", "runs", "sits"]
VOCABULARY = Vocabulary(WORDS, counts=[1] * 9)
CAPTIONS = [("A dog runs.", "a dog"), ("A cat sits!",), ("a horse runs", "a", "dog dog dog a cat")]
FEATURES = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(2))


def make_images(folder: Path = Path()) -> list[CaptionedImage]:
    return [
        CaptionedImage(f"{k}.png", folder / f"{k}.png", texts, k)
        for k, texts in enumerate(CAPTIONS)
    ]


def source(rows: Tensor) -> Tensor:
    return FEATURES[rows]


def make(images: list[CaptionedImage], **settings: Any) -> CaptionValidator:
    torch.manual_seed(1)
    language_model = LanguageModel(
        vocab_size=9, embedding_dim=5, hidden_size=5, dropout=DropoutRates(0.5, 0.5)
    )
    model = Captioner(language_model=language_model, feature_dim=4)
    constraints = Constraints(bos=1, eos=2, max_length=5, min_length=1, banned=[0, 1, 3])
    decoder = partial(greedy, constraints=constraints)
    arguments = {
        "generator": CaptionGenerator(model, VOCABULARY, decoder),
        "images": images,
        "dataset": CaptionDataset(images, vocabulary=VOCABULARY, source=source, max_length=10),
        "batch_size": 2,
        **settings,
    }
    return CaptionValidator(**arguments)


def figures_of(validator: CaptionValidator, extra: Any = None) -> dict[str, float]:
    references = {image.name: image.captions for image in validator.images}
    return CaptionScorer(references, extra)(validator(0))


def direct_loss(model: Captioner) -> float:
    """Mean nats a token, caption by caption."""
    encoded = {
        0: [[4, 5, 7], [4, 5]],
        1: [[4, 6, 8]],
        2: [[4, 3, 7], [4], [5, 5, 5, 4, 6]],
    }
    total, tokens = 0.0, 0
    for image, captions in encoded.items():
        for caption in captions:
            targets = [*caption, 2]
            logits = model(
                FEATURES[image][None],
                torch.zeros(1, dtype=torch.int64),
                torch.tensor([1, *caption]),
                torch.ones(len(targets), dtype=torch.int64),
            )
            log_probs = logits.log_softmax(-1)
            total -= sum(float(log_probs[k, word]) for k, word in enumerate(targets))
            tokens += len(targets)
    return total / tokens


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_loss_is_computed_directly_whatever_the_batch_size(batch_size: int) -> None:
    validator = make(make_images(), batch_size=batch_size)
    found = validator.loss()
    with torch.no_grad():
        expected = direct_loss(validator.generator.model.eval())
    assert found == pytest.approx(expected, rel=1e-5)
    figures = figures_of(validator)
    assert figures["loss"] == found
    assert figures["perplexity"] == pytest.approx(math.exp(found))


def test_captions_are_generated_of_every_image_and_scored() -> None:
    seen: list[dict[str, str]] = []

    def extra(captions: dict[str, str]) -> dict[str, float]:
        seen.append(captions)
        return {"count": float(len(captions))}

    validator = make(make_images())
    figures = figures_of(validator, extra)
    expected = [one[0].text for one in validator.generator.captions(FEATURES)]
    assert list(seen[0]) == ["0.png", "1.png", "2.png"]
    assert list(seen[0].values()) == expected
    assert figures["count"] == 3.0
    assert figures["different_captions"] == len(set(expected)) / 3
    assert {f"BLEU-{n}" for n in (1, 2, 3, 4)} <= set(figures)


def test_captions_that_are_references_score_a_hundred() -> None:
    images = make_images()
    validator = make(images)
    texts = [one[0].text for one in validator.generator.captions(FEATURES)]
    agreeing = [
        CaptionedImage(i.name, i.path, (*i.captions, text), i.image_id)
        for i, text in zip(images, texts, strict=True)
    ]
    assert figures_of(make(agreeing))["BLEU-1"] == pytest.approx(100.0)
    assert figures_of(make(images))["BLEU-1"] < 100.0


@pytest.mark.parametrize("training", [True, False])
def test_mode_weights_and_random_state_are_left_as_found(training: bool) -> None:
    validator = make(make_images())
    model = validator.generator.model.train(training)
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    state = torch.get_rng_state()
    first = validator(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training == training and model.language_model.training == training
    assert validator(1) == first


class Writer:
    def __init__(self) -> None:
        self.images: dict[str, tuple[np.ndarray, int]] = {}
        self.texts: dict[str, tuple[str, int]] = {}

    def add_image(self, name: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images[name] = (pixels, step)

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts[name] = (text, step)


def test_the_first_images_are_shown_once_and_their_captions_each_time(tmp_path: Path) -> None:
    images, writer = make_images(tmp_path), Writer()
    for image in images[:2]:
        Image.new("RGB", (6, 4), "red").save(image.path)
    validator = make(images, writer=writer, shown=2)
    validator(17)
    validator(34)
    pixels, step = writer.images["dev/1"]
    assert pixels.shape == (4, 6, 3) and step == 17 and len(writer.images) == 2
    caption = validator.generator.captions(FEATURES[:1])[0][0].text
    assert writer.texts["dev/0"] == (f"**{caption}**\n\n- A dog runs.\n- a dog", 34)
