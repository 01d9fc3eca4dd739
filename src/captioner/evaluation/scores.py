"""Scores that carry their protocol and their uncertainty: of captions, of files, of people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner import __version__
from captioner.errors import DataError
from captioner.evaluation.bleu import brevity_penalty as penalty_of
from captioner.evaluation.bleu import length_ratio
from captioner.evaluation.cider import DocumentFrequencies
from captioner.evaluation.coco_format import ImageId, read_references, read_results
from captioner.evaluation.metrics import FAST, Measured, averaged, measure
from captioner.evaluation.protocol import Protocol, protocol_named
from captioner.evaluation.records import (
    ImageRecord,
    RunRecord,
    ShownCaption,
    make_record,
    save_record,
)
from captioner.evaluation.sanity import describe_captions
from captioner.evaluation.statistics import SAMPLES, intervals

References = Mapping[ImageId, Sequence[str]]
# References, hypotheses and their scores -> what stands beside them (sanity.check_sanity).
SanityCheck = Callable[[References, Mapping[ImageId, str], Mapping[str, Any]], dict[str, Any]]


def score(
    references: References,
    hypotheses: Mapping[ImageId, str],
    *,
    metrics: Sequence[str] = FAST,
    protocol: str = "coco",
    brevity_penalty: bool | None = None,
    table: DocumentFrequencies | None = None,
    samples: int = SAMPLES,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every metric in percent, 95 % intervals, how the captions look, and the protocol card.

    Both sides are raw captions of the same images. CIDEr stands for CIDEr-D, as coco-caption's
    does; "CIDEr-unclipped" is the paper's first form. `metrics` are of captioner.evaluation.
    metrics.METRICS; one that cannot be computed says why under "unavailable". `protocol` is coco
    or neuraltalk; `table` gives CIDEr document frequencies from elsewhere; `samples=0` leaves the
    intervals out; `card` adds entries (split, beam, checkpoint). Raises DataError when the images
    differ, one has no reference, or a caption is no string.
    """
    conventions = protocol_named(protocol, brevity_penalty)
    measured = measure_matched(
        references, hypotheses, metrics=metrics, protocol=conventions, table=table
    )
    return present(
        measured, references, hypotheses, protocol=conventions, samples=samples, card=card
    )


def measure_matched(
    references: References,
    hypotheses: Mapping[ImageId, str],
    *,
    protocol: Protocol,
    metrics: Sequence[str] = FAST,
    table: DocumentFrequencies | None = None,
) -> Measured:
    """The metrics of captions by image, in the references' order; DataError as in `score`."""
    images = match_images(references, hypotheses)
    return measure(
        [references[image] for image in images],
        [hypotheses[image] for image in images],
        protocol=protocol,
        metrics=metrics,
        table=table,
    )


def present(
    measured: Measured,
    references: References,
    hypotheses: Mapping[ImageId, str] | None,
    *,
    protocol: Protocol,
    samples: int = SAMPLES,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What scores.json holds of a measurement."""
    entries: dict[str, Any] = {name: m.value for name, m in measured.metrics.items()}
    if "CIDEr-D" in entries:
        entries["CIDEr"] = entries["CIDEr-D"]
    if hypotheses is not None and "BLEU-1" in measured.metrics:
        sums = measured.metrics["BLEU-1"].statistics.sum(axis=0)
        entries["brevity_penalty"] = float(penalty_of(sums)) if protocol.brevity_penalty else 1.0
        entries["length_ratio"] = length_ratio(sums)
    if samples:
        found = intervals(measured.metrics, samples=samples)
        entries["intervals"] = {name: list(bounds) for name, bounds in found.items()}
    if measured.unavailable:
        entries["unavailable"] = measured.unavailable
    if hypotheses is not None:
        entries["captions"] = describe_captions(list(hypotheses.values()))
    counts = [len(references[image]) for image in references]
    entries["protocol"] = {
        **(card or {}),
        **protocol.card(counts),
        **measured.notes,
        "intervals": f"95 %, {samples} bootstrap samples of images" if samples else "none",
        "captioner": __version__,
    }
    return entries


def score_files(
    *,
    results: Path | str,
    references: Path | str,
    out: Path | str | None = None,
    subset: bool = False,
    metrics: Sequence[str] = FAST,
    protocol: str = "coco",
    brevity_penalty: bool | None = None,
    table: DocumentFrequencies | None = None,
    samples: int = SAMPLES,
    card: Mapping[str, Any] | None = None,
    sanity: SanityCheck | None = None,
) -> RunRecord:
    """Score a COCO results file against COCO annotations; write scores and images beside `out`.

    `subset` allows results for some of the annotated images; otherwise each needs a caption. Raises
    DataError naming the file at fault.
    """
    captions, annotations = read_results(results), read_references(references)
    images = match_images(
        annotations, captions, names=(str(references), str(results)), subset=subset
    )
    files: dict[str, Any] = {"results": str(results), "references": str(references)}
    if subset:
        files["images_annotated"] = len(annotations)
    conventions = protocol_named(protocol, brevity_penalty)
    matched = {image: annotations[image] for image in images}
    hypotheses = {image: captions[image] for image in images}
    measured = measure_matched(
        matched, hypotheses, metrics=metrics, protocol=conventions, table=table
    )
    scores = present(
        measured, matched, hypotheses, protocol=conventions, samples=samples,
        card={**files, **(card or {})},
    )  # fmt: skip
    if sanity is not None:
        scores["sanity"] = sanity(matched, hypotheses, scores)
    shown = [ImageRecord(i, [ShownCaption(captions[i])], annotations[i]) for i in images]
    record = make_record(Path(results).stem, scores, shown, measured)
    if out is not None:
        save_record(out, record)
    return record


def human_scores(
    references: References,
    *,
    metrics: Sequence[str] = FAST,
    protocol: str = "coco",
    brevity_penalty: bool | None = None,
    samples: int = SAMPLES,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One person against the others: the mean over which reference is left out and scored.

    There are as many rounds as the image with the fewest references has; each image needs two. As a
    system is scored against one reference more, the row is a little low beside it.
    """
    rounds = min((len(captions) for captions in references.values()), default=0)
    if rounds < 2:
        few = [image for image, captions in references.items() if len(captions) < 2]
        raise DataError(
            f"leaving one reference out needs two or more of each image: {len(few)} of "
            f"{len(references)} images have fewer{_examples(few)}"
        )
    conventions = protocol_named(protocol, brevity_penalty)
    others: dict[ImageId, list[str]] = {}
    results = []
    for left_out in range(rounds):
        people = {image: captions[left_out] for image, captions in references.items()}
        others = {
            image: [*captions[:left_out], *captions[left_out + 1 :]]
            for image, captions in references.items()
        }
        results.append(measure_matched(others, people, metrics=metrics, protocol=conventions))
    said = {"hypotheses": f"one reference left out, mean of {rounds} rounds"}
    return present(
        averaged(results), others, None, protocol=conventions, samples=samples,
        card={**(card or {}), **said},
    )  # fmt: skip


def match_images(
    references: References,
    hypotheses: Mapping[ImageId, str],
    *,
    names: tuple[str, str] = ("the references", "the hypotheses"),
    subset: bool = False,
) -> list[ImageId]:
    """The images to score, in the references' order; DataError unless both sides can be compared.

    `names` are what messages call the two sides. `subset` allows images without a hypothesis.
    """
    name, hypotheses_name = names
    images = [image for image in references if not subset or image in hypotheses]
    missing = [image for image in images if image not in hypotheses]
    extra = [image for image in hypotheses if image not in references]
    if missing or extra:
        raise DataError(
            f"{hypotheses_name} must caption the images of {name}: {len(missing)} of "
            f"{len(references)} have no caption{_examples(missing)}; {len(extra)} "
            f"captioned images are unknown{_examples(extra)}"
        )
    if not images:
        raise DataError(f"there is nothing to score: {hypotheses_name} or {name} hold no image")
    bare = [image for image in images if not references[image]]
    if bare:
        raise DataError(
            f"{name}: {len(bare)} of {len(images)} images have no caption to compare with"
            f"{_examples(bare)}"
        )
    for image in images:
        for caption in (hypotheses[image], *references[image]):
            if not isinstance(caption, str):
                raise DataError(
                    f"image {image!r}: expected captions to be strings, found {caption!r}"
                )
    return images


def _examples(images: Sequence[ImageId]) -> str:
    """The first few ids, in brackets; repr tells 7 from "7"."""
    if not images:
        return ""
    return f" ({', '.join(map(repr, images[:3]))}{', ...' if len(images) > 3 else ''})"
