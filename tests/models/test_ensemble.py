"""Captioners that choose each word together: the mean of their probabilities, whatever decodes."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from flat_generation import beam_search, greedy, sample

from captioner.data.vocabulary import Vocabulary
from captioner.inference.captions import CaptionGenerator
from captioner.models.captioner import Captioner
from captioner.models.ensemble import Ensemble
from captioner.models.language_model import LanguageModel, initialise

VOCABULARY = Vocabulary(["a", "dog", "runs"], counts=[1] * 7)
IMAGES = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(1))


def member(seed: int, *, hidden_size: int = 6, words: int = len(VOCABULARY), kind: str = "lstm"):  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    language_model = LanguageModel(
        vocab_size=words, embedding_dim=4, hidden_size=hidden_size, kind=kind
    )
    model = Captioner(language_model=language_model, feature_dim=5, feature_norm="none")
    initialise(model, scheme="uniform", scale=1.0)
    return model.eval()


def arguments(**other: object) -> dict[str, object]:
    banned = [VOCABULARY.pad, VOCABULARY.bos]
    return {
        "bos": VOCABULARY.bos,
        "eos": VOCABULARY.eos,
        "max_length": 4,
        "banned": banned,
        **other,
    }


DECODERS = {
    "greedy": lambda: partial(greedy, **arguments()),
    "beam": lambda: partial(beam_search, **arguments(beam_size=3, n_best=3)),
    "sample": lambda: partial(
        sample, **arguments(samples=2, generator=torch.Generator().manual_seed(3))
    ),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_model_with_itself_says_what_it_says_alone(decoder: str) -> None:
    model = member(0)
    alone = CaptionGenerator(model, VOCABULARY, DECODERS[decoder]()).captions(IMAGES)
    both = Ensemble([model, model])
    together = CaptionGenerator(both, VOCABULARY, DECODERS[decoder]()).captions((IMAGES, IMAGES))
    for ours, wanted in zip(together, alone, strict=True):
        assert [one.text for one in ours] == [one.text for one in wanted]
        for one, other in zip(ours, wanted, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)


@torch.inference_mode()
def test_the_best_of_a_wide_beam_is_the_best_of_all_sequences() -> None:
    """Members of other sizes and kinds, whose features differ."""
    members = [member(0), member(1, hidden_size=9), member(2, kind="gru")]
    features = (IMAGES, 2 * IMAGES, IMAGES.flip(0))
    wide = partial(beam_search, **arguments(beam_size=300, max_length=3, length_penalty=0.0))
    found = CaptionGenerator(Ensemble(members), VOCABULARY, wide).captions(features)
    words = [k for k in range(len(VOCABULARY)) if k not in (VOCABULARY.pad, VOCABULARY.bos)]
    for image in range(3):
        best = max(
            sequence_log_prob(members, features, image, tokens)
            for length in (1, 2, 3)
            for tokens in product(words, repeat=length)
            if VOCABULARY.eos not in tokens[:-1] and (tokens[-1] == VOCABULARY.eos or length == 3)
        )
        assert found[image][0].log_prob == pytest.approx(best, abs=1e-4)


def sequence_log_prob(members, features, image, tokens) -> float:  # type: ignore[no-untyped-def]
    """Summed log of the members' mean probability of each token, every model read word by word."""
    states = [m.start(f[image : image + 1]) for m, f in zip(members, features, strict=True)]
    last, total = torch.tensor([VOCABULARY.bos]), 0.0
    for token in tokens:
        probability = 0.0
        for k, model in enumerate(members):
            log_probs, states[k] = model.step(last, states[k])
            probability += float(log_probs[0, token].exp()) / len(members)
        total += float(torch.tensor(probability).log())
        last = torch.tensor([token])
    return total


def test_vocabularies_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        Ensemble([member(0), member(0, words=9)])
