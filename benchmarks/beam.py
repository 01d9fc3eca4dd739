"""suite=beam: beam search over batches of images, beside one image at a time."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.captions import build_vocabulary, captioned_images, random_features
from benchmarks.settings import BeamBenchmark
from benchmarks.suite import Run, SuiteResult
from benchmarks.timing import interleaved, paired_ratio
from captioner.build.components import build_generation
from captioner.build.models import build_captioner
from captioner.config import GenerationConfig, ModelConfig
from captioner.data.vocabulary import Vocabulary
from captioner.inference.captions import CaptionGenerator
from captioner.models.captioner import Captioner

FEATURE_DIM, TIMES_FASTER = 1280, 5.0
BATCHED, SINGLE = "batched", "one image at a time"
# With embeddings and output weights this many times as large, an untrained model is as decided
# about the next word as a trained one. WORDS is the length that the captions are brought to.
DECIDED, WORDS = 16.0, 10.0
VOCABULARY_FROM, CALIBRATED_ON = 6000, 50


def beam_suite(settings: BeamBenchmark, run: Run) -> SuiteResult:
    """Caption the same features both ways and compare the captions."""
    wanted = max(settings.images, VOCABULARY_FROM)
    images = captioned_images(wanted, data_root=run.data_root, seed=run.seed)
    vocabulary = build_vocabulary(images)
    store = random_features(images[: settings.images], FEATURE_DIM, seed=run.seed)
    features = torch.from_numpy(store.features).to(run.device)
    generator = _generator(vocabulary, settings, run)
    _settle_length(generator, features[:CALIBRATED_ON])
    found: dict[str, list[str]] = {}

    def caption(name: str, batch_size: int) -> None:
        found[name] = _captions(generator, features.split(batch_size))

    sizes = {BATCHED: settings.batch_size, SINGLE: 1}
    calls = {name: partial(caption, name, size) for name, size in sizes.items()}
    taken = interleaved(calls, repeats=run.repeats, device=run.device, warmup=0)
    words = sum(len(text.split()) for text in found[BATCHED]) / settings.images
    described = {**vars(settings), "vocabulary": len(vocabulary)}
    result = SuiteResult({**described, "mean_words": round(words, 2), "seed": run.seed})
    for name, spread in taken.items():
        rate = spread.map(lambda seconds: settings.images / seconds)
        result.add("beam search", name, "images/s", rate)
    speed = paired_ratio(taken[SINGLE], taken[BATCHED])
    differing = sum(a != b for a, b in zip(found[BATCHED], found[SINGLE], strict=True))
    result.require("speed of batched to one at a time", "times", speed, at_least=TIMES_FASTER)
    result.require("captions that differ", "captions", differing, at_most=0)
    return result


def _generator(vocabulary: Vocabulary, settings: BeamBenchmark, run: Run) -> CaptionGenerator:
    size = settings.hidden_size
    config = ModelConfig(embedding_dim=size, hidden_size=size)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(run.seed)
        model = build_captioner(config, vocab_size=len(vocabulary), feature_dim=FEATURE_DIM)
        assert isinstance(model, Captioner)
        model.language_model.embedding.weight.mul_(DECIDED)
        model.language_model.output.weight.mul_(DECIDED)
    generation = GenerationConfig(method="beam", beam_size=settings.beam_size)
    search = build_generation(generation, vocabulary)
    return CaptionGenerator(model.to(run.device).eval(), vocabulary, search)


@torch.no_grad()
def _settle_length(generator: CaptionGenerator, features: Tensor) -> None:
    """Set the bias of `<eos>` (by bisection) so that captions have about WORDS words."""
    assert isinstance(generator.model, Captioner)
    bias, eos = generator.model.language_model.output.bias, generator.vocabulary.eos
    low, high = -10.0, 30.0
    for _ in range(9):
        bias[eos] = (low + high) / 2
        captions = _captions(generator, [features])
        if sum(len(text.split()) for text in captions) > WORDS * len(captions):
            low = float(bias[eos])
        else:
            high = float(bias[eos])


def _captions(generator: CaptionGenerator, batches: Sequence[Tensor]) -> list[str]:
    """The best caption of each image."""
    return [found[0].text for found in generator.all_captions(batches)]
