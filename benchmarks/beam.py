"""suite=beam: beam search over batches of images, beside one image at a time.

Shapes: n images, R regions, F image feature.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.record import Figure, Requirement, SuiteResult
from benchmarks.timing import Spread, interleaved, paired_ratio
from benchmarks.workload import build_vocabulary, captioned_images, random_features
from captioner.build.components import build_captioner, build_generation
from captioner.config import GenerationConfig, ModelConfig
from captioner.data.vocabulary import Vocabulary
from captioner.inference.captions import Caption, CaptionGenerator
from captioner.models.captioner import Captioner

FEATURE_DIM, TIMES_FASTER = 1280, 5.0
# With embeddings and output weights this many times as large, an untrained model is as decided
# about the next word as a trained one. The recurrent weights stay small: larger ones are chaotic
# and blow roundings up. WORDS is the length that the captions are brought to.
DECIDED, WORDS = 16.0, 10.0
VOCABULARY_FROM, CALIBRATED_ON = 6000, 50


def beam_suite(
    *,
    images: int,
    beam_size: int,
    batch_size: int,
    hidden_size: int,
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """Caption the same features both ways and compare the captions."""
    wanted = max(images, VOCABULARY_FROM)
    captioned = captioned_images(wanted, data_root=data_root, seed=seed)
    vocabulary = build_vocabulary(captioned)
    store = random_features(captioned[:images], FEATURE_DIM, seed=seed)
    features = torch.from_numpy(store.features).to(device)
    generator = _generator(vocabulary, beam_size, hidden_size, device, seed)
    _settle_length(generator, features[:CALIBRATED_ON])
    sides = _Sides(generator, features, batch_size)
    calls = {"batched": sides.batched, "one image at a time": sides.one_by_one}
    taken = interleaved(calls, repeats=repeats, device=device, warmup=0)
    figures = [
        Figure("beam search", side, "images/s", spread.map(lambda seconds: images / seconds))
        for side, spread in taken.items()
    ]
    ratio = paired_ratio(taken["one image at a time"], taken["batched"])
    differing = Spread((float(sides.differing()),))
    requirements = [
        Requirement("speed of batched to one at a time", "times", ratio, at_least=TIMES_FASTER),
        Requirement("captions that differ", "captions", differing, at_most=0),
    ]
    settings = {
        "images": images,
        "beam_size": beam_size,
        "batch_size": batch_size,
        "hidden_size": hidden_size,
        "vocabulary": len(vocabulary),
        "mean_words": round(sides.mean_words(), 2),
        "seed": seed,
    }
    return SuiteResult(settings, figures, requirements)


def _generator(
    vocabulary: Vocabulary, beam_size: int, hidden_size: int, device: torch.device, seed: int
) -> CaptionGenerator:
    config = ModelConfig(embedding_dim=hidden_size, hidden_size=hidden_size)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build_captioner(config, vocab_size=len(vocabulary), feature_dim=FEATURE_DIM)
        model.language_model.embedding.weight.mul_(DECIDED)
        model.language_model.output.weight.mul_(DECIDED)
    generation = GenerationConfig(method="beam", beam_size=beam_size)
    return CaptionGenerator(
        model.to(device).eval(), vocabulary, build_generation(generation, vocabulary)
    )


@torch.no_grad()
def _settle_length(generator: CaptionGenerator, features: Tensor) -> None:
    """Set the bias of `<eos>` (by bisection) so that captions have about WORDS words."""
    model = generator.model
    assert isinstance(model, Captioner)
    bias, eos = model.language_model.output.bias, generator.vocabulary.eos
    low, high = -10.0, 30.0
    for _ in range(9):
        bias[eos] = (low + high) / 2
        if _mean_words(generator.all_captions([features])) > WORDS:
            low = float(bias[eos])
        else:
            high = float(bias[eos])


def _mean_words(captions: Iterable[list[Caption]]) -> float:
    lengths = [len(found[0].words) for found in captions]
    return sum(lengths) / len(lengths)


class _Sides:
    """The same search over batches and over single images."""

    def __init__(self, generator: CaptionGenerator, features: Tensor, batch_size: int) -> None:
        self.generator, self.features, self.batch_size = generator, features, batch_size
        self.found: dict[str, list[list[Caption]]] = {}

    def batched(self) -> None:
        """All images, `batch_size` at once."""
        self.found["batched"] = self._captions(self.batch_size)

    def one_by_one(self) -> None:
        """All images, each by itself."""
        self.found["one by one"] = self._captions(1)

    def _captions(self, batch_size: int) -> list[list[Caption]]:
        return list(self.generator.all_captions(self.features.split(batch_size)))

    def differing(self) -> int:
        """How many images got another best caption."""
        pairs = zip(self.found["batched"], self.found["one by one"], strict=True)
        return sum(one[0].text != other[0].text for one, other in pairs)

    def mean_words(self) -> float:
        """The captions' mean length."""
        return _mean_words(self.found["batched"])
