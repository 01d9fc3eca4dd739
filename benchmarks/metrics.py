"""suite=metrics: our metrics beside pycocoevalcap's, and their memory at many images.

Both tokenise raw captions themselves: pycocoevalcap with Stanford's tokeniser in Java.
"""

from __future__ import annotations

import importlib.util
import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.captions import captioned_images
from benchmarks.record import Axes, SuiteResult
from benchmarks.settings import Run, SuiteSettings, setting
from benchmarks.timing import interleaved, paired_ratio
from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import cider
from captioner.evaluation.metrics import measure
from captioner.evaluation.ngrams import encode
from captioner.evaluation.rouge import rouge_l

TIMES_FASTER, SECONDS, SAME = 5.0, 2.0, 1e-9
OURS, ONCE, THEIRS = "captioner", "captioner, once tokenised", "pycocoevalcap"
Captions = list[str]


@dataclass
class MetricsBenchmark(SuiteSettings):
    """suite=metrics: images to score both ways, and at how many images memory is measured."""

    suite: ClassVar[str] = "metrics"
    images: int = setting(1000, least=2)
    memory_images: list[int] = setting([1000, 10000, 40000])


def metrics_suite(settings: MetricsBenchmark, run: Run) -> SuiteResult:
    """BLEU, ROUGE-L and CIDEr-D of so many images with five references each, both ways."""
    references, hypotheses = _captions(settings.images, run)
    measured = _Measured(references, hypotheses)
    calls = {OURS: measured.ours, ONCE: measured.tokenised}
    if importlib.util.find_spec("pycocoevalcap") and shutil.which("java"):
        calls[THEIRS] = measured.theirs
    taken = interleaved(calls, repeats=run.repeats, device=run.device)
    result = SuiteResult({**vars(settings), "references": 5, "seed": run.seed})
    for name, spread in taken.items():
        result.add("BLEU, ROUGE-L, CIDEr-D", name, "s", spread)
    result.require("time once tokenised", "s", taken[ONCE], at_most=SECONDS)
    if THEIRS in taken:
        speed = paired_ratio(taken[THEIRS], taken[OURS])
        result.require(f"speed of {OURS} to {THEIRS}", "times", speed, at_least=TIMES_FASTER)
        # From 0 to 1; CIDEr to 10.
        apart = max(abs(value - measured.own[name]) for name, value in measured.other.items())
        result.require("largest difference of a score", "of 1", apart, at_most=SAME)
    for count in settings.memory_images:
        captions, peak = _memory(references, hypotheses, count)
        axes: Axes = {"images": count}
        result.add("captions in memory", OURS, "MB", captions, axes)
        result.add("peak beyond the captions", OURS, "MB", peak, axes)
    return result


def _captions(images: int, run: Run) -> tuple[list[Captions], Captions]:
    """Five references an image, and as its hypothesis one caption of it or of another."""
    found = captioned_images(images + images // 5 + 1, data_root=run.data_root, seed=run.seed)
    captioned = [one for one in found if len(one.captions) == 5]
    rows = captioned[:images]
    return [list(one.captions) for one in rows], [
        captioned[(row + row % 2) % len(captioned)].captions[row % 5] for row in range(len(rows))
    ]


class _Measured:
    """The same scores by our package and by pycocoevalcap."""

    def __init__(self, references: list[Captions], hypotheses: Captions) -> None:
        self.references, self.hypotheses = references, hypotheses
        self.corpus = encode(references, hypotheses, coco_tokens)
        self.own: dict[str, float] = {}
        self.other: dict[str, float] = {}

    def ours(self) -> None:
        """From raw captions; the tokeniser remembers nothing of earlier repeats."""
        coco_tokens.cache_clear()
        found = measure(self.references, self.hypotheses)
        self.own = {name: metric.value / 100 for name, metric in found.metrics.items()}

    def tokenised(self) -> None:
        """From word numbers."""
        for metric in (*bleu(self.corpus), rouge_l(self.corpus), *cider(self.corpus)):
            _ = metric.value

    def theirs(self) -> None:
        """From raw captions, its tokeniser's two Java processes included."""
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        tokenizer = PTBTokenizer()
        references = tokenizer.tokenize(_entries(self.references))
        hypotheses = tokenizer.tokenize(_entries([[one] for one in self.hypotheses]))
        scores, _ = Bleu(4).compute_score(references, hypotheses, verbose=0)
        self.other = {f"BLEU-{order}": value for order, value in enumerate(scores, start=1)}
        self.other["ROUGE-L"] = Rouge().compute_score(references, hypotheses)[0]
        self.other["CIDEr-D"] = Cider().compute_score(references, hypotheses)[0]


def _entries(captions: Sequence[Captions]) -> dict[int, list[dict[str, Any]]]:
    return {i: [{"caption": c} for c in of_image] for i, of_image in enumerate(captions)}


def _memory(references: list[Captions], hypotheses: Captions, images: int) -> tuple[float, float]:
    """MB that `images` images' own captions take, and the peak of Python's memory beyond them.

    Beyond those there are, captions are made different by their number. DataError without any.
    """
    if not references:
        raise DataError("measuring memory needs captions: there are none")
    coco_tokens.cache_clear()
    tracemalloc.start()
    many = [
        [f"{caption} {row // len(references)}" for caption in references[row % len(references)]]
        for row in range(images)
    ]
    own = [f"{hypotheses[row % len(hypotheses)]} x" for row in range(images)]
    captions = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    measure(many, own)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return captions / 1e6, (peak - captions) / 1e6
