"""Writing: drawn as the model says, stopped in time, shown as it grows, repeatable."""

from __future__ import annotations

import pytest
import torch

from captioner.data.text.codec import TextCodec
from captioner.data.vocabulary import Vocabulary
from captioner.inference.text import GrowingText, TextGenerator
from captioner.models.language_model import LanguageModel
from captioner.models.rnn import RNN_KINDS


def codec(words: str = "abcd", unit: str = "character", documents: int = 1) -> TextCodec:
    tokens = [chr(k) for k in range(256)] if unit == "byte" else [*words]
    counts = [0, documents - 1, 0, 0, *([5] * len(tokens))]
    return TextCodec(unit, Vocabulary(tokens, counts=counts))


def generator(text: TextCodec, kind: str = "lstm") -> TextGenerator:
    torch.manual_seed(0)
    size = len(text.vocabulary)
    model = LanguageModel(vocab_size=size, embedding_dim=5, hidden_size=6, num_layers=2, kind=kind)
    for parameter in model.parameters():
        parameter.data.uniform_(-1.5, 1.5)
    return TextGenerator(model, text)


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_a_seed_gives_the_same_texts_in_any_company_and_they_score_as_the_model_says(
    kind: str,
) -> None:
    writer = generator(codec(), kind)
    three = writer.samples("abca", length=30, n=3, seed=4, temperature=3.0)
    assert three == writer.samples("abca", length=30, n=3, seed=4, temperature=3.0)
    two = writer.samples("abca", length=30, n=2, seed=4, temperature=3.0)
    assert [one.text for one in two] == [one.text for one in three[:2]]
    assert three != writer.samples("abca", length=30, n=3, seed=5, temperature=3.0)
    assert len({one.text for one in three}) == 3
    ids = torch.tensor(writer.codec.encode("abca" + three[1].text))
    logits, _ = writer.model(ids[:-1], torch.ones(len(ids) - 1, dtype=torch.int64))
    scored = logits.log_softmax(-1).gather(1, ids[1:, None])[3:, 0]
    assert three[1].log_probs == pytest.approx(scored.tolist(), abs=1e-5)
    assert {one.finished for one in three} == {"length"} and len(three[1].text) == 30


def test_only_text_is_written_and_a_document_may_end() -> None:
    one = generator(codec()).samples("a", length=400, temperature=3.0)[0]
    assert len(one.text) == 400 and set(one.text) == set("abcd")
    writer = generator(codec(documents=3))
    ended = writer.samples("a", length=400, n=3, temperature=3.0)
    assert {one.finished for one in ended} == {"document"}
    assert all(len(one.text) == len(one.log_probs) - 1 for one in ended)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_filters_and_cold_give_the_likeliest(settings: dict[str, float]) -> None:
    writer = generator(codec())
    found = writer.samples("ab", length=20, seed=1, **settings)[0]  # type: ignore[arg-type]
    ids = writer.codec.encode("ab")
    banned = [0, 1, 2, 3]
    for _ in range(20):
        logits, _ = writer.model(torch.tensor(ids), torch.ones(len(ids), dtype=torch.int64))
        logits[-1, banned] = -torch.inf
        ids.append(int(logits[-1].argmax()))
    assert writer.codec.decode(ids) == "ab" + found.text


def test_what_is_shown_adds_up_and_stops_before_the_stop_text() -> None:
    writer = generator(codec())
    free = writer.samples("a", length=60, n=4, seed=2)
    stop = free[0].text[20:23]
    shown = [""] * 4

    def listen(number: int, text: str) -> None:
        shown[number] += text
        assert stop not in shown[number]

    writer.listener = listen
    stopped = writer.samples("a", length=60, n=4, seed=2, stop=stop)
    for before, after, seen in zip(free, stopped, shown, strict=True):
        place = before.text.find(stop)
        assert after.text == seen == (before.text[:place] if place >= 0 else before.text)
        assert after.finished == ("stop" if place >= 0 else "length")


def test_an_end_that_may_become_the_stop_text_is_held_back() -> None:
    growing = GrowingText(codec(), "abb")
    shown = [growing.add(token) for token in codec().encode("cababd")]
    assert shown == ["c", "", "", "ab", "", "abd"] and growing.rest() == ""
    again = GrowingText(codec(), "abb")
    assert [again.add(token) for token in codec().encode("dab")] == ["d", "", ""]
    assert again.rest() == "ab" and not again.stopped


def test_bytes_are_shown_as_whole_characters() -> None:
    text = codec(unit="byte")
    growing = GrowingText(text, None)
    shown = [growing.add(token) for token in text.encode("a\N{EURO SIGN}b")]
    assert shown == ["a", "", "", "\N{EURO SIGN}", "b"]
    growing.add(4 + 0xE2)
    assert growing.rest() == "\N{REPLACEMENT CHARACTER}"
    one = generator(text).samples("\N{EURO SIGN}", length=50, seed=3)[0]
    assert len(one.log_probs) == 50
