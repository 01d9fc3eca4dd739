"""Scores with their protocol and their uncertainty: of captions, of files, of people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.evaluation import records
from captioner.evaluation.bleu import brevity_penalty, length_ratio
from captioner.evaluation.coco_format import ImageId, read_references, read_results
from captioner.evaluation.corpus import Corpus, encode_references, with_hypotheses
from captioner.evaluation.metric import intervals
from captioner.evaluation.metrics import Measured, ScoringOptions, averaged, measure
from captioner.evaluation.sanity import describe_captions
from captioner.version import __version__

References = Mapping[ImageId, Sequence[str]]
# References, hypotheses, their scores, and the references encoded -> baselines and warnings
# (sanity.check_sanity).
SanityCheck = Callable[
    [References, Mapping[ImageId, str], Mapping[str, Any], Corpus], dict[str, Any]
]


def score(
    references: References,
    hypotheses: Mapping[ImageId, str],
    options: ScoringOptions | None = None,
    *,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every metric in percent, 95 % intervals, statistics of the captions, and the protocol card.

    Both are raw captions of the same images. CIDEr stands for CIDEr-D, as coco-caption's does;
    "CIDEr-unclipped" is the paper's first form. A metric that cannot be computed says why under
    "unavailable". `card` adds entries (split, beam, checkpoint). Raises DataError when the images
    differ, one has no reference, or a caption is no string.
    """
    options = options or ScoringOptions()
    measured = measure_matched(references, hypotheses, options)
    return present(measured, references, hypotheses, options, card=card)


def measure_matched(
    references: References,
    hypotheses: Mapping[ImageId, str],
    options: ScoringOptions | None = None,
    *,
    encoded: Corpus | None = None,
) -> Measured:
    """The metrics of captions by image, in the references' order; DataError as in `score`.

    `encoded` are the references as `encode_matched` makes them, if they are known.
    """
    options = options or ScoringOptions()
    images = match_images(references, hypotheses)
    captions = [hypotheses[i] for i in images]
    if encoded is None:
        encoded = encode_matched(references, options)
    corpus = with_hypotheses(encoded, captions, options.conventions.tokens)
    return measure([references[i] for i in images], captions, options, corpus=corpus)


def encode_matched(references: References, options: ScoringOptions) -> Corpus:
    """The references, tokenised once for several measurements."""
    return encode_references(references.values(), options.conventions.tokens)


def present(
    measured: Measured,
    references: References,
    hypotheses: Mapping[ImageId, str] | None,
    options: ScoringOptions,
    *,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What scores.json holds of a measurement."""
    protocol, samples = options.conventions, options.samples
    entries: dict[str, Any] = {name: m.value for name, m in measured.metrics.items()}
    if "CIDEr-D" in entries:
        entries["CIDEr"] = entries["CIDEr-D"]
    if hypotheses is not None and "BLEU-1" in measured.metrics:
        sums = measured.metrics["BLEU-1"].statistics.sum(axis=0)
        penalty = float(brevity_penalty(sums)) if protocol.brevity_penalty else 1.0
        entries |= {"brevity_penalty": penalty, "length_ratio": length_ratio(sums)}
    if samples:
        found = intervals(measured.metrics, samples=samples)
        entries["intervals"] = {name: list(bounds) for name, bounds in found.items()}
    if measured.unavailable:
        entries["unavailable"] = measured.unavailable
    if hypotheses is not None:
        entries["captions"] = describe_captions(list(hypotheses.values()))
    entries["protocol"] = {
        **(card or {}),
        **protocol.card([len(captions) for captions in references.values()]),
        **measured.notes,
        "intervals": f"95 %, {samples} bootstrap samples of images" if samples else "none",
        "captioner": __version__,
    }
    return entries


def score_files(
    *,
    results: Path | str,
    references: Path | str,
    options: ScoringOptions | None = None,
    out: Path | str | None = None,
    subset: bool = False,
    card: Mapping[str, Any] | None = None,
    sanity: SanityCheck | None = None,
) -> records.RunRecord:
    """Score a COCO results file against COCO annotations; write scores and images beside `out`,
    without which the record holds no images.

    `subset` allows results for some of the annotated images; otherwise each needs a caption. Raises
    DataError naming the file at fault.
    """
    options = options or ScoringOptions()
    captions, annotations = read_results(results), read_references(references)
    names = str(references), str(results)
    images = match_images(annotations, captions, names=names, subset=subset)
    files: dict[str, Any] = {"results": str(results), "references": str(references)}
    if subset:
        files["images_annotated"] = len(annotations)
    matched = {image: annotations[image] for image in images}
    hypotheses = {image: captions[image] for image in images}
    encoded = encode_matched(matched, options)
    measured = measure_matched(matched, hypotheses, options, encoded=encoded)
    scores = present(measured, matched, hypotheses, options, card={**files, **(card or {})})
    if sanity is not None:
        scores["sanity"] = sanity(matched, hypotheses, scores, encoded)
    name = Path(results).stem
    if out is None:
        return records.RunRecord(name, scores, (), measured.metrics)
    shown = (
        records.ImageRecord(image, [records.ShownCaption(captions[image])], annotations[image])
        for image in images
    )
    record = records.make_record(name, scores, shown, measured)
    records.save_record(out, record)
    return record


def human_scores(
    references: References,
    options: ScoringOptions | None = None,
    *,
    card: Mapping[str, Any] | None = None,
    encoded: Corpus | None = None,
) -> dict[str, Any]:
    """One person against the others: the mean over which reference is left out and scored.

    There are as many rounds as the image with the fewest references has; each image needs two. A
    system is scored against one reference more, so these scores are a little low beside its own.
    `encoded` are the references as `encode_matched` makes them, if they are known.
    """
    options = options or ScoringOptions()
    rounds = min((len(captions) for captions in references.values()), default=0)
    if rounds < 2:
        few = [image for image, captions in references.items() if len(captions) < 2]
        raise DataError(
            f"leaving one reference out needs two or more of each image: {len(few)} of "
            f"{len(references)} images have fewer{_examples(few)}"
        )
    others: dict[ImageId, list[str]] = {}
    results = []
    for left_out in range(rounds):
        people = {image: captions[left_out] for image, captions in references.items()}
        others = {
            image: [*captions[:left_out], *captions[left_out + 1 :]]
            for image, captions in references.items()
        }
        match_images(others, people)
        if encoded is None:
            encoded = encode_matched(references, options)
        corpus = encoded.one_against_others(left_out)
        captions = list(others.values()), list(people.values())
        results.append(measure(*captions, options, corpus=corpus))
    card = {**(card or {}), "hypotheses": f"one reference left out, mean of {rounds} rounds"}
    return present(averaged(results), others, None, options, card=card)


def match_images(
    references: References,
    hypotheses: Mapping[ImageId, str],
    *,
    names: tuple[str, str] = ("the references", "the hypotheses"),
    subset: bool = False,
) -> list[ImageId]:
    """The images to score, in the references' order; DataError unless the two can be compared.

    `names` are what messages call the two. `subset` allows images without a hypothesis.
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
        captions = hypotheses[image], *references[image]
        if {*map(type, captions)} == {str}:
            continue
        for caption in captions:
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
