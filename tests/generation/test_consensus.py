"""Consensus reranking against a double loop over the captions of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from captioner.build.components import build_generation
from captioner.config import GenerationConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.evaluation.cider import DocumentFrequencies, cider
from captioner.evaluation.corpus import encode
from captioner.generation import Hypothesis, by_consensus

VOCABULARY = Vocabulary(["dog", "cat", "runs"], counts=[1] * 7)
IMAGES = (0, 1, 2)


def generate(
    tiny: Any, *, training: DocumentFrequencies | None = None, **settings: Any
) -> list[list[Hypothesis]]:
    model = tiny(vocab_size=7, sharpness=1.0)
    config = GenerationConfig(**{"max_length": 5, "min_length": 2, **settings})
    counted = {} if training is None else {"training_frequencies": lambda: training}
    method = build_generation(config, VOCABULARY, **counted)
    found: list[list[Hypothesis]] = method(model.step, model.state(*IMAGES), batch_size=len(IMAGES))
    return found


def by_two_loops(of_image: list[Hypothesis], table: DocumentFrequencies) -> list[Hypothesis]:
    """Sorted by the mean of CIDEr-D against each of the others."""
    texts = [" ".join(VOCABULARY.decode(one.token_ids)) for one in of_image]
    means = []
    for k, text in enumerate(texts):
        scores = [
            cider(encode([[other]], [text], str.split), table)[0].value
            for n, other in enumerate(texts)
            if n != k
        ]
        means.append(sum(scores) / len(scores))
    order = sorted(range(len(texts)), key=lambda k: (-round(means[k], 9), k))
    return [of_image[k] for k in order]


@pytest.mark.parametrize(
    "search",
    [
        {"method": "beam", "beam_size": 6},
        {"method": "beam", "beam_size": 6, "groups": 2, "diversity": 0.5},
        {"method": "sample", "samples": 12, "seed": 3},
    ],
)
def test_consensus_is_what_two_loops_find(tmp_path: Path, tiny: Any, search: Any) -> None:
    words = [[[a, b], [b, c, a]] for a, b, c in (("dog", "runs", "cat"), ("cat", "runs", "runs"))]
    table = DocumentFrequencies.of([*words, [["fish"]], [["fish", "swims"]]])
    table.save(tmp_path / "table.json")
    candidates = generate(tiny, n_best=12, **search)
    chosen = {"rerank": "consensus", "document_frequencies": str(tmp_path / "table.json")}
    found = generate(tiny, n_best=3, **chosen, **search)
    chosen["document_frequencies"] = "train"
    assert found == generate(tiny, training=table, n_best=3, **chosen, **search)
    assert found == [by_two_loops(of_image, table)[:3] for of_image in candidates]
    assert [one[0] for one in found] != [one[0] for one in candidates]


def test_the_first_of_equals_stays_first() -> None:
    found = [[Hypothesis((k,), (-1.0,), -1.0, True) for k in range(4)], []]
    ranked = by_consensus(found, lambda sentences, images: [1.0, 2.0, 2.0, 1.0], n_best=9)
    assert [[one.token_ids[0] for one in of_image] for of_image in ranked] == [[1, 2, 0, 3], []]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"method": "greedy"}, "method=greedy$"),
        ({"beam_size": 2}, "method=beam and generation.beam_size=2$"),
        ({"method": "sample", "samples": 1}, "method=sample and generation.samples=1$"),
    ],
)
def test_too_few_captions_to_compare_are_refused(settings: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=f"compares 3 captions or more of an image.*{found}"):
        GenerationConfig(rerank="consensus", **settings)
