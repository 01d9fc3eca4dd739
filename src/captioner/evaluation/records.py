"""A scored run in two files: scores.json, to be read, and scores_images.json with every image.

The second has all that a comparison or a report needs: captions, references, scores and the
statistics that add up to the corpus's. Both can be read back without model or data.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.attention import WordMaps
from captioner.evaluation.bleu import bleu_metrics
from captioner.evaluation.coco_format import ImageId
from captioner.evaluation.meteor import meteor_metric
from captioner.evaluation.metric import Metric, mean_metric
from captioner.evaluation.metrics import Measured
from captioner.files import read_json, write_json, write_json_rows
from captioner.restore import Json, restore

DIGITS = 10  # of the numbers of each image


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: captions (best first), references, and its file if there is one."""

    image_id: ImageId
    captions: Sequence[ShownCaption]
    references: Sequence[str]
    file: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.captions:
            raise ValueError(f"image {self.image_id!r} has no caption")


@dataclass(frozen=True)
class RunRecord:
    """A run: its name, what scores.json holds, its images, and its metrics."""

    name: str
    scores: Mapping[str, Any]
    images: Sequence[ImageRecord]
    metrics: Mapping[str, Metric]


def make_record(
    name: str, scores: Mapping[str, Any], images: Iterable[ImageRecord], measured: Measured
) -> RunRecord:
    """A record of images in the order in which `measured` has them."""
    columns = {metric.name: metric.per_image.tolist() for metric in measured.metrics.values()}
    scored = [
        replace(one, scores={name: round(column[row], 4) for name, column in columns.items()})
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
    images = {"name": record.name, "images": [*record.images], "statistics": statistics}
    write_json_rows(images_file(path), images, default=_fields)
    write_json(path, record.scores)


def _fields(one: Any) -> dict[str, Any]:
    """A dataclass's fields, without those of attention where there is none."""
    items = ((f.name, getattr(one, f.name)) for f in fields(one))
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
    scores: Any = restore(_OptionalScores, read_json(path, file_names=True), str(path))
    place = str(images_file(path))
    content = read_json(images_file(path), file_names=True)
    stored: _Images = restore(_Images, _todays(content), place)
    images, count = stored["images"], len(stored["images"])
    if not images:
        raise DataError(f"{place} holds no image")
    statistics = {k: _table(x, k, count, place) for k, x in stored["statistics"].items()}
    metrics = _metrics(statistics, penalise=scores["protocol"].get("brevity_penalty") == "on")
    for image in images:
        if absent := metrics.keys() - image.scores.keys():
            raise DataError(f"{place}: image {image.image_id!r} has no {', '.join(sorted(absent))}")
    return RunRecord(stored["name"], scores, images, metrics)


class _Sanity(TypedDict, total=False):
    warnings: list[str]
    rows: dict[str, dict[str, float]]


class _Scores(TypedDict):
    protocol: dict[str, Json]


class _OptionalScores(_Scores, total=False):
    """What comparisons and reports read of scores.json, beside the scores."""

    intervals: dict[str, tuple[float, float]]
    sanity: _Sanity


class _Images(TypedDict):
    name: str
    images: list[ImageRecord]
    statistics: dict[str, list[Any]]


def _todays(content: Any) -> Any:
    """The content with the key "file", which earlier files call otherwise."""
    entries = content.get("images") if isinstance(content, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        with contextlib.suppress(KeyError, TypeError):
            entry["file"] = entry["picture"]
            del entry["picture"]
    return content


# Statistics of an image; of all other metrics the score and a one.
_COLUMNS = {"BLEU-4": 10, "METEOR-py": 6}


def _table(rows: list[Any], name: str, images: int, place: str) -> np.ndarray:
    shape = (images, _COLUMNS.get(name, 2))
    try:
        table = np.array(rows)
    except ValueError:  # rows of different lengths
        table = np.array(None)
    if table.shape != shape or table.dtype.kind not in "iuf" or not np.isfinite(table).all():
        expected = "{} rows of {} finite numbers".format(*shape)
        raise DataError(f"{place}: the statistics of {name} must be {expected}")
    return table.astype(np.float64)


def _metrics(statistics: Mapping[str, np.ndarray], *, penalise: bool) -> dict[str, Metric]:
    """The metrics from their statistics; which formula combines them follows from the name."""
    metrics: dict[str, Metric] = {}
    for name, table in statistics.items():
        if name == "BLEU-4":
            metrics |= {m.name: m for m in bleu_metrics(table, penalise=penalise)}
        elif name == "METEOR-py":
            metrics[name] = meteor_metric(table)
        else:
            metrics[name] = mean_metric(name, table[:, 0])
    return metrics
