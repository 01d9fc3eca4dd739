"""suite=metrics: our metrics of raw captions beside pycocoevalcap's, and their memory."""

import importlib.util
import shutil
import tracemalloc
from collections.abc import Callable

from benchmarks.captions import captioned_images
from benchmarks.settings import MetricsBenchmark
from benchmarks.suite import Axes, Run, SuiteResult
from benchmarks.timing import interleaved, paired_ratio
from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation.bleu import bleu
from captioner.evaluation.cider import cider
from captioner.evaluation.corpus import encode
from captioner.evaluation.metrics import measure
from captioner.evaluation.rouge import rouge_l

TIMES_FASTER, SECONDS, SAME = 5.0, 2.0, 1e-9
OURS, ONCE, THEIRS = "captioner", "captioner, once tokenised", "pycocoevalcap"
Captions = list[str]
Scores = dict[str, float]


def metrics_suite(settings: MetricsBenchmark, run: Run) -> SuiteResult:
    """BLEU, ROUGE-L and CIDEr-D of so many images with five references each, both ways."""
    references, hypotheses = _captions(settings.images, run)
    corpus = encode(references, hypotheses, coco_tokens)
    found: dict[str, Scores] = {}

    def scored(name: str, score: Callable[[list[Captions], Captions], Scores]) -> None:
        found[name] = score(references, hypotheses)

    def once() -> None:
        for metric in (*bleu(corpus), rouge_l(corpus), *cider(corpus)):
            _ = metric.value

    calls: dict[str, Callable[[], None]] = {OURS: lambda: scored(OURS, _ours), ONCE: once}
    if importlib.util.find_spec("pycocoevalcap") and shutil.which("java"):
        calls[THEIRS] = lambda: scored(THEIRS, _theirs)
    taken = interleaved(calls, repeats=run.repeats, device=run.device)
    result = SuiteResult({**vars(settings), "references": 5, "seed": run.seed})
    for name, spread in taken.items():
        result.add("BLEU, ROUGE-L, CIDEr-D", name, "s", spread)
    result.require("time once tokenised", "s", taken[ONCE], at_most=SECONDS)
    if THEIRS in taken:
        speed = paired_ratio(taken[THEIRS], taken[OURS])
        result.require(f"speed of {OURS} to {THEIRS}", "times", speed, at_least=TIMES_FASTER)
        # From 0 to 1; CIDEr to 10.
        apart = max(abs(value - found[OURS][name]) for name, value in found[THEIRS].items())
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


def _ours(references: list[Captions], hypotheses: Captions) -> Scores:
    """Scores of raw captions; the tokeniser remembers nothing of earlier repeats."""
    coco_tokens.piece.cache_clear()
    metrics = measure(references, hypotheses).metrics
    return {name: metric.value / 100 for name, metric in metrics.items()}


def _theirs(references: list[Captions], hypotheses: Captions) -> Scores:
    """pycocoevalcap's scores of raw captions, its tokeniser's two Java processes included."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    of_images, own = (
        tokenizer.tokenize({i: [{"caption": c} for c in image] for i, image in enumerate(captions)})
        for captions in (references, [[one] for one in hypotheses])
    )
    scores, _ = Bleu(4).compute_score(of_images, own, verbose=0)
    found = {f"BLEU-{order}": value for order, value in enumerate(scores, start=1)}
    found["ROUGE-L"] = Rouge().compute_score(of_images, own)[0]
    return {**found, "CIDEr-D": Cider().compute_score(of_images, own)[0]}


def _memory(references: list[Captions], hypotheses: Captions, images: int) -> tuple[float, float]:
    """MB of captions of so many images, made different by number, and the peak beyond them."""
    if not references:
        raise DataError("measuring memory needs captions: there are none")
    coco_tokens.piece.cache_clear()
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
