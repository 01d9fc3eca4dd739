"""How evaluate.py scores captions: of a model, of a results file, or of people."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from captioner import config as schema
from captioner.evaluation.cider import DocumentFrequencies
from captioner.evaluation.coco_format import ImageId, read_references
from captioner.evaluation.corpus import Corpus
from captioner.evaluation.metrics import FAST, ScoringOptions
from captioner.evaluation.records import ImageRecord, RunRecord, make_record
from captioner.evaluation.report import write_report
from captioner.evaluation.sanity import TrainingSet, check_sanity
from captioner.evaluation.scores import (
    encode_matched,
    human_scores,
    measure_matched,
    present,
    score_files,
)
from captioner.files import file_digest, write_json

# CIDEr is CIDEr-D once more, and the others are no scores.
NOT_IN_A_ROW = {"CIDEr", "brevity_penalty", "length_ratio"}
# Shown with four digits: ratios near 1, and a language model's figures.
FINE = {"brevity_penalty", "length_ratio", "loss", "perplexity"}


def scoring_options(config: schema.ScoringConfig) -> ScoringOptions:
    """Metrics, protocol and bootstrap as configured, the document frequencies read."""
    path = config.document_frequencies
    return ScoringOptions(
        metrics=config.metrics,
        protocol=config.protocol,
        brevity_penalty=config.brevity_penalty,
        table=None if path is None else DocumentFrequencies.load(path),
        samples=config.samples,
    )


def checkpoint_card(paths: Iterable[Path]) -> str:
    """The files that were scored, each with the start of its sha256."""
    return ", ".join(f"{path} sha256 {file_digest(path)[:16]}" for path in paths)


def score_split(
    options: ScoringOptions,
    images: Sequence[ImageRecord],
    *,
    name: str,
    card: Mapping[str, Any],
    training: TrainingSet | None = None,
    extra: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Score the best caption of each image; with `training`, also baselines and warnings."""
    references: dict[ImageId, Sequence[str]] = {i.image_id: i.references for i in images}
    best = {image.image_id: image.captions[0].text for image in images}
    encoded = encode_matched(references, options)
    measured = measure_matched(references, best, options, encoded=encoded)
    scores = present(measured, references, best, options, card=card)
    if training is not None:
        scores["sanity"] = _sanity(options, training, references, best, scores, encoded)
    return make_record(name, {**scores, **(extra or {})}, images, measured)


def _sanity(
    options: ScoringOptions,
    training: TrainingSet,
    references: Mapping[ImageId, Sequence[str]],
    best: Mapping[ImageId, str],
    scores: Mapping[str, Any],
    encoded: Corpus,
) -> dict[str, Any]:
    fast = [name for name in options.metrics if name in FAST]
    options = dataclasses.replace(options, metrics=fast, samples=0)

    def scorer(captions: Mapping[ImageId, str]) -> dict[str, float]:
        measured = measure_matched(references, captions, options, encoded=encoded)
        return {name: metric.value for name, metric in measured.metrics.items()}

    def human() -> dict[str, float]:
        without = dataclasses.replace(options, table=None)
        found = human_scores(references, without, encoded=encoded)
        return {name: value for name, value in found.items() if isinstance(value, float)}

    return check_sanity(references, best, scores, scorer=scorer, human=human, training=training)


def evaluate_files(config: schema.EvaluateConfig) -> RunRecord:
    """Score a COCO results file; with `out`, also write scores, images and a page."""
    options = scoring_options(config)
    record = score_files(
        results=str(config.results),
        references=str(config.references),
        out=config.out,
        subset=config.subset,
        options=options,
        sanity=partial(_sanity, options, TrainingSet()) if config.sanity else None,
    )
    if config.out is not None and config.report:
        page = Path(config.out).with_suffix(".html")
        write_report(page, [record], title=f"Captions of {record.name}", images=config.report)
    return record


def evaluate_humans(config: schema.EvaluateConfig) -> dict[str, Any]:
    """One reference against the others, of a file or of a split; written to `out` if given."""
    if config.references is not None:
        references = read_references(config.references)
        card = {"references": config.references}
    else:
        from captioner.build.components import load_data  # imports torch

        data = load_data(config.data)
        references = {i.image_id: list(i.captions) for i in data.splits[config.split]}
        card = {"data": data.name, "split": config.split}
    options = dataclasses.replace(scoring_options(config), table=None)
    scores = human_scores(references, options, card=card)
    if config.out is not None:
        write_json(config.out, scores)
    return scores


def table_row(name: str, scores: Mapping[str, Any]) -> str:
    """The scores as one row to paste into a table, each with its name; BLEU-1 to 4 in one cell."""
    values = {k: v for k, v in scores.items() if isinstance(v, float) and k not in NOT_IN_A_ROW}
    bleu = [f"{values.pop(key):.1f}" for key in [k for k in values if k.startswith("BLEU-")]]
    cells = [name, *([f"BLEU-1 to 4: {' / '.join(bleu)}"] if bleu else [])]
    cells += [
        f"{key} {value:.{3 if key in FINE or key.startswith('bits_per_') else 1}f}"
        for key, value in values.items()
    ]
    return f"| {' | '.join(cells)} |"


def format_scores(scores: Mapping[str, Any]) -> str:
    """Scores with their intervals, baselines and warnings, for the terminal."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            low_high = scores.get("intervals", {}).get(name)
            digits = 4 if name in FINE or name.startswith("bits_per_") else 2
            shown = ", ".join(f"{bound:.{digits}f}" for bound in low_high or ())
            bounds = f"   95 % [{shown}]" if low_high else ""
            lines.append(f"{name:20} {value:8.{digits}f}{bounds}")
    lines += [f"{name}: not computed: {why}" for name, why in scores.get("unavailable", {}).items()]
    sanity = scores.get("sanity", {})
    for name, row in sanity.get("rows", {}).items():
        values = ", ".join(f"{key} {row[key]:.2f}" for key in ("BLEU-4", "CIDEr-D") if key in row)
        lines.append(f"beside it, {name}: {values}")
    lines += [f"warning: {warning}" for warning in sanity.get("warnings", [])]
    return "\n".join(lines)
