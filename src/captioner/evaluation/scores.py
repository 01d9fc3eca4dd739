"""Scores that carry their protocol: of captions, of COCO-format files, and of people themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from captioner.data.tokenize import tokenize
from captioner.errors import DataError
from captioner.evaluation.bleu import ORDERS, Bleu, corpus_bleu
from captioner.evaluation.coco_format import ImageId, read_references, read_results
from captioner.evaluation.sanity import describe_captions
from captioner.files import write_json

References = Mapping[ImageId, Sequence[str]]


def score(
    references: References,
    hypotheses: Mapping[ImageId, str],
    *,
    brevity_penalty: bool = True,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """BLEU-1..4 (0 to 100), how the captions look, and the protocol card, ready for write_json.

    Both sides are raw captions of the same images. `protocol` adds entries to the card (split,
    beam, checkpoint); what is measured here stands over an entry of the same name. Raises DataError
    when the images differ, one has no reference, or a caption is no string.
    """
    images = match_images(references, hypotheses)
    bleu = _bleu(references, hypotheses, images, brevity_penalty)
    return {
        **_score_entries([bleu]),
        "captions": describe_captions([hypotheses[image] for image in images]),
        "protocol": {
            **(protocol or {}),
            **_protocol_card([len(references[image]) for image in images], brevity_penalty),
        },
    }


def score_files(
    *,
    results: Path | str,
    references: Path | str,
    out: Path | str | None = None,
    brevity_penalty: bool = True,
    subset: bool = False,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a COCO results file against a COCO annotations file, and write the scores to `out`.

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
    scores = score(
        {image: annotations[image] for image in images},
        captions,
        brevity_penalty=brevity_penalty,
        protocol={**files, **(protocol or {})},
    )
    if out is not None:
        write_json(out, scores)
    return scores


def human_bleu(
    references: References,
    *,
    brevity_penalty: bool = True,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """BLEU of one person against the others: the mean over which reference is left out and scored.

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
    results = []
    for left_out in range(rounds):
        people = {image: captions[left_out] for image, captions in references.items()}
        others = {
            image: [*captions[:left_out], *captions[left_out + 1 :]]
            for image, captions in references.items()
        }
        results.append(_bleu(others, people, match_images(others, people), brevity_penalty))
    counts = [len(captions) - 1 for captions in references.values()]
    return {
        **_score_entries(results),
        "protocol": {
            **(protocol or {}),
            **_protocol_card(counts, brevity_penalty),
            "hypotheses": f"one reference left out, mean of {rounds} rounds",
        },
    }


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


def _bleu(
    references: References,
    hypotheses: Mapping[ImageId, str],
    images: Sequence[ImageId],
    brevity_penalty: bool,
) -> Bleu:
    return corpus_bleu(
        [[tokenize(caption) for caption in references[image]] for image in images],
        [tokenize(hypotheses[image]) for image in images],
        brevity_penalty=brevity_penalty,
    )


def _score_entries(results: Sequence[Bleu]) -> dict[str, Any]:
    """The mean of one or more results, rounded for the record."""
    entries = {
        f"BLEU-{order}": round(fmean(result.scores[order - 1] for result in results), 2)
        for order in ORDERS
    }
    entries["brevity_penalty"] = round(fmean(result.brevity_penalty for result in results), 4)
    entries["length_ratio"] = round(fmean(result.length_ratio for result in results), 4)
    return entries


def _protocol_card(reference_counts: Sequence[int], brevity_penalty: bool) -> dict[str, Any]:
    return {
        "metric": "corpus BLEU as coco-caption computes it, closest reference length, unsmoothed",
        "tokeniser": "PTB style, lower case, punctuation dropped (captioner.data.tokenize)",
        "brevity_penalty": "on" if brevity_penalty else "off",
        "images": len(reference_counts),
        "references_per_image": {
            "min": min(reference_counts),
            "mean": round(fmean(reference_counts), 2),
            "max": max(reference_counts),
        },
    }


def _examples(images: Sequence[ImageId]) -> str:
    """The first few ids, in brackets; repr tells 7 from "7"."""
    if not images:
        return ""
    return f" ({', '.join(map(repr, images[:3]))}{', ...' if len(images) > 3 else ''})"
