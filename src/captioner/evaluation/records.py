"""A scored run in two files: scores.json, to be read, and scores_images.json with every image.

The second has all that a comparison or a report needs: captions, references, scores and the
statistics that add up to the corpus's. Both can be read back without model or data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.attention import WordMaps
from captioner.evaluation.bleu import bleu_metrics
from captioner.evaluation.coco_format import ImageId
from captioner.evaluation.meteor import meteor_metric
from captioner.evaluation.metric import Metric, mean_metric
from captioner.evaluation.metrics import Measured
from captioner.files import read_json, write_json

DIGITS = 10  # of the numbers of each image


@dataclass(frozen=True)
class ShownCaption:
    """A caption with its words' probabilities, its log-probability (nats) and its words' attention
    maps, where known."""

    text: str
    words: Sequence[tuple[str, float]] = ()
    log_prob: float | None = None
    maps: WordMaps | None = None

    def __post_init__(self) -> None:
        if self.maps is not None and len(self.maps.cells) != len(self.words):
            raise ValueError(
                f"{len(self.maps.cells)} attention maps of a caption of {len(self.words)} words"
            )


@dataclass(frozen=True)
class ImageRecord:
    """One image: captions (best first), references, and its file if there is one."""

    image_id: ImageId
    captions: Sequence[ShownCaption]
    references: Sequence[str]
    file: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A run: its name, what scores.json holds, its images, and its metrics."""

    name: str
    scores: Mapping[str, Any]
    images: Sequence[ImageRecord]
    metrics: Mapping[str, Metric]


def make_record(
    name: str, scores: Mapping[str, Any], images: Sequence[ImageRecord], measured: Measured
) -> RunRecord:
    """A record of images in the order in which `measured` has them."""
    metrics = measured.metrics.values()
    scored = [
        replace(one, scores={m.name: round(float(m.per_image[row]), 4) for m in metrics})
        for row, one in enumerate(images)
    ]
    return RunRecord(name, scores, scored, measured.metrics)


def images_file(path: Path | str) -> Path:
    """The file of the images beside a file of scores."""
    path = Path(path)
    return path.with_name(f"{path.stem}_images.json")


def save_record(path: Path | str, record: RunRecord) -> None:
    """Write the scores to `path` and the images beside it, each whole or not at all."""
    statistics = {
        name: np.round(metric.statistics, DIGITS).tolist()
        for name, metric in record.metrics.items()
        if not name.startswith("BLEU-") or name == "BLEU-4"
    }
    images = [asdict(one, dict_factory=_without_maps) for one in record.images]
    write_json(images_file(path), {"name": record.name, "images": images, "statistics": statistics})
    write_json(path, record.scores)


def _without_maps(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dataclass's fields without those of attention where there is none."""
    return {k: x for k, x in items if x is not None or k not in ("maps", "sentinel", "crop")}


def load_record(path: Path | str) -> RunRecord:
    """Read a run back from its scores file, or from the folder that holds scores.json.

    DataError naming the file when one of the two is missing or of another shape.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "scores.json"
    elif not path.suffix:
        path = path.with_suffix(".json")
    scores, content = read_json(path), read_json(images_file(path))
    try:
        images = [_image(one) for one in content["images"]]
        metrics = _metrics(content["statistics"], scores)
        name = str(content["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{images_file(path)} is no file of scored images: {error!r}") from error
    return RunRecord(name, scores, images, metrics)


def _image(entry: Mapping[str, Any]) -> ImageRecord:
    captions = [
        ShownCaption(
            one["text"],
            [(word, p) for word, p in one["words"]],
            one["log_prob"],
            WordMaps(**one["maps"]) if "maps" in one else None,
        )
        for one in entry["captions"]
    ]
    file = entry["file"] if "file" in entry else entry["picture"]  # the key in earlier files
    return ImageRecord(entry["image_id"], captions, entry["references"], file, entry["scores"])


def _metrics(statistics: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics from their statistics; which formula combines them follows from the name."""
    metrics: dict[str, Metric] = {}
    for name, rows in statistics.items():
        table = np.array(rows, np.float64)
        if name == "BLEU-4":
            penalise = scores["protocol"]["brevity_penalty"] == "on"
            metrics |= {m.name: m for m in bleu_metrics(table, penalise=penalise)}
        elif name == "METEOR-py":
            metrics[name] = meteor_metric(table)
        else:
            metrics[name] = mean_metric(name, table[:, 0])
    return metrics
