"""From images to sentences: texts, probabilities, and a model left as it was."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.data.vocabulary import Vocabulary
from captioner.generation import Constraints, Hypothesis, beam_search, greedy
from captioner.inference.captions import Caption, CaptionGenerator
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel

WORDS = ["a", "dog", "cat", "runs"]
VOCABULARY = Vocabulary(WORDS, counts=[1] * 8)
IMAGES = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2))


def make_model() -> Captioner:
    torch.manual_seed(0)
    language_model = LanguageModel(
        vocab_size=8, embedding_dim=6, hidden_size=6, dropout=DropoutRates(0.5, 0.5)
    )
    for parameter in language_model.parameters():
        torch.nn.init.normal_(parameter)
    return Captioner(language_model=language_model, feature_dim=3, feature_dropout=0.5)


def by_hand(model: Captioner, image: Tensor) -> tuple[list[str], list[float]]:
    """Greedy words and their probabilities through forward alone, the whole text each time."""
    words, chances = [VOCABULARY.bos], []
    while len(words) <= 6:
        sizes = torch.ones(len(words), dtype=torch.int64)
        logits = model(image[None], torch.zeros(1, dtype=torch.int64), torch.tensor(words), sizes)
        probabilities = logits[-1].softmax(-1)
        probability = probabilities[3:].max()
        if probabilities[VOCABULARY.eos] > probability:
            chances.append(float(probabilities[VOCABULARY.eos]))
            break
        words.append(3 + int(probabilities[3:].argmax()))
        chances.append(float(probability))
    return [VOCABULARY.tokens[k] for k in words[1:]], chances


CONSTRAINTS = Constraints(bos=1, eos=2, max_length=6, banned=[0, 1])
GREEDY = partial(greedy, constraints=CONSTRAINTS)


def test_captions_are_those_of_decoding_by_hand() -> None:
    model = make_model()
    captions = CaptionGenerator(model, VOCABULARY, GREEDY).captions(IMAGES)
    with torch.no_grad():
        for image, (caption,) in zip(IMAGES, captions, strict=True):
            words, chances = by_hand(model.eval(), image)
            assert caption.text == " ".join(words)
            assert [word for word, _ in caption.words] == words
            assert [p for _, p in caption.words] == pytest.approx(chances[: len(words)], rel=1e-4)
            assert caption.log_prob == pytest.approx(sum(map(math.log, chances)), rel=1e-4)
            assert caption.finished == (len(chances) > len(words))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_change_the_captions(batch_size: int) -> None:
    decoder = partial(beam_search, constraints=CONSTRAINTS, beam_size=3)
    generator = CaptionGenerator(make_model(), VOCABULARY, decoder)
    whole = generator.captions(IMAGES)
    parts = list(generator.all_captions(IMAGES.split(batch_size)))
    assert [[c.text for c in one] for one in parts] == [[c.text for c in one] for one in whole]
    assert all(len(one) == 3 and one[0].text for one in parts)


def test_neither_weights_nor_random_state_are_touched() -> None:
    model = make_model()
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    state = torch.get_rng_state()
    CaptionGenerator(model, VOCABULARY, GREEDY).captions(IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(p.is_inference() for p in model.parameters())


def test_each_word_keeps_its_own_probability_among_special_tokens() -> None:
    """A decoder that does not ban them may give <pad> or <bos>, which are no words."""

    def decoder(step: Any, state: Any, *, batch_size: int) -> list[list[Hypothesis]]:
        chances = tuple(math.log(p) for p in (0.5, 0.1, 0.25, 0.2, 0.9))
        return [[Hypothesis((4, 0, 5, 3), chances, -1.0, True)]] * batch_size

    ((caption,),) = CaptionGenerator(make_model(), VOCABULARY, decoder).captions(IMAGES[:1])
    assert isinstance(caption, Caption) and caption.text == "a dog <unk>"
    assert [word for word, _ in caption.words] == ["a", "dog", "<unk>"]
    assert [p for _, p in caption.words] == pytest.approx([0.5, 0.25, 0.2])
    assert caption.log_prob == pytest.approx(math.log(0.5 * 0.1 * 0.25 * 0.2 * 0.9))
