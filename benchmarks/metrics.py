"""suite=metrics: our metrics beside pycocoevalcap's, and their memory at many images.

Both sides tokenise raw captions themselves: pycocoevalcap with Stanford's tokeniser in Java.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.record import Figure, Requirement, SuiteResult
from benchmarks.timing import Spread, interleaved, paired_ratio
from benchmarks.workload import captioned_images
from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import cider
from captioner.evaluation.metrics import measure
from captioner.evaluation.ngrams import encode
from captioner.evaluation.rouge import rouge_l

TIMES_FASTER, SECONDS, SAME = 5.0, 2.0, 1e-9
Captions = list[str]


def metrics_suite(
    *,
    images: int,
    memory_images: list[int],
    repeats: int,
    device: torch.device,
    data_root: str | None,
    seed: int,
) -> SuiteResult:
    """BLEU, ROUGE-L and CIDEr-D of `images` images with five references each, both ways."""
    references, hypotheses = _captions(images, data_root=data_root, seed=seed)
    sides = _Sides(references, hypotheses)
    calls = {"captioner": sides.ours, "captioner, once tokenised": sides.tokenised}
    if sides.theirs_available():
        calls["pycocoevalcap"] = sides.theirs
    taken = interleaved(calls, repeats=repeats, device=device, warmup=1)
    figures = [
        Figure("BLEU, ROUGE-L, CIDEr-D", side, "s", spread) for side, spread in taken.items()
    ]
    once = taken["captioner, once tokenised"]
    requirements = [Requirement("time once tokenised", "s", once, at_most=SECONDS)]
    if "pycocoevalcap" in taken:
        ratio = paired_ratio(taken["pycocoevalcap"], taken["captioner"])
        apart = Spread((sides.difference(),))
        requirements += [
            Requirement(
                "speed of captioner to pycocoevalcap", "times", ratio, at_least=TIMES_FASTER
            ),
            Requirement("largest difference of a score", "of 1", apart, at_most=SAME),
        ]
    for count in memory_images:
        captions, peak = _memory(references, hypotheses, count)
        axes: dict[str, int | str] = {"images": count}
        figures += [
            Figure("captions in memory", "captioner", "MB", Spread((captions,)), axes),
            Figure("peak beyond the captions", "captioner", "MB", Spread((peak,)), axes),
        ]
    settings = {"images": images, "references": 5, "memory_images": memory_images, "seed": seed}
    return SuiteResult(settings, figures, requirements)


def _captions(images: int, *, data_root: str | None, seed: int) -> tuple[list[Captions], Captions]:
    """Five references an image, and as its hypothesis one caption of it or of another."""
    captioned = [
        one for one in captioned_images(images + images // 5 + 1, data_root=data_root, seed=seed)
        if len(one.captions) == 5
    ]  # fmt: skip
    rows = captioned[:images]
    return [list(one.captions) for one in rows], [
        captioned[(row + row % 2) % len(captioned)].captions[row % 5] for row in range(len(rows))
    ]


class _Sides:
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

    @staticmethod
    def theirs_available() -> bool:
        """Whether pycocoevalcap and Java are here; said aloud by the sides that are listed."""
        import importlib.util
        import shutil

        return bool(importlib.util.find_spec("pycocoevalcap") and shutil.which("java"))

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

    def difference(self) -> float:
        """The largest difference between the two sides' corpus scores (0 to 1; CIDEr to 10)."""
        return float(max(abs(value - self.own[name]) for name, value in self.other.items()))


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
