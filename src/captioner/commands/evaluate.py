"""What evaluate.py and caption.py do with a trained captioner, for notebooks and tests as well."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from captioner import config as schema
from captioner.build.checkpoint import TrainedCaptioner
from captioner.build.components import load_data, pick_device, scene_metrics
from captioner.build.ensemble import TrainedEnsemble, load_ensemble
from captioner.commands.scoring import score_split
from captioner.config import checkpoint_paths
from captioner.data.captions import CaptionData, CaptionedImage
from captioner.data.images import load_image
from captioner.errors import DataError
from captioner.evaluation.coco_format import write_results
from captioner.evaluation.leakage import find_leakage
from captioner.evaluation.records import ImageRecord, ShownCaption, save_record
from captioner.evaluation.report import write_report
from captioner.evaluation.sanity import TrainingSet
from captioner.inference.captions import Caption
from captioner.training.model_folder import results_folder, weights_file

log = logging.getLogger(__name__)
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Evaluation:
    """A captioned and scored split; `folder` holds scores.json, captions.json, report.html, ..."""

    images: Sequence[CaptionedImage]
    captions: Sequence[list[Caption]]
    scores: dict[str, Any]
    folder: Path


def evaluate_checkpoint(config: schema.EvaluateConfig) -> Evaluation:
    """Caption a split of the checkpoint's data set (or of `data`), score it, write it all down.

    The files go into `out`, by default a folder beside the checkpoint named for split and decoder.
    """
    given = checkpoint_paths(config.checkpoint)
    trained = load_ensemble(given, device=pick_device(config.device))
    paths = [weights_file(one) for one in given]
    path = paths[0]
    name = path.parent.name if len(paths) == 1 else f"{len(paths)} from {path.parent.name}"
    data_config = config.data if config.data is not None else trained.data
    data = load_data(data_config)
    images = data.split(config.split)
    captions = caption_images(trained, images, config.generation)
    best = {image.image_id: found[0].text for image, found in zip(images, captions, strict=True)}
    extra = {}
    if isinstance(data_config, schema.ScenesData):
        by_name = {image.name: found[0].text for image, found in zip(images, captions, strict=True)}
        extra = {k: round(v, 2) for k, v in scene_metrics(images)(by_name).items()}
    beams = config.generation.beam_size if config.generation.method == "beam" else ""
    results = f"{config.split}_{_of_how_many(paths)}{config.generation.method}{beams}"
    folder = Path(config.out or results_folder(given[0], results))
    record = score_split(
        config,
        [
            ImageRecord(i.image_id, [_shown(c) for c in found], i.captions, str(i.path))
            for i, found in zip(images, captions, strict=True)
        ],
        name=f"{name} {config.split} {config.generation.method}{beams}",
        card={"data": data.name, **_protocol(config, paths, trained)},
        training=_training_set(config, trained.members[0], data, images) if config.sanity else None,
        extra=extra,
    )
    save_record(folder / "scores.json", record)
    write_results(folder / "captions.json", best)
    if config.report:
        title = f"Captions of {folder}"
        write_report(folder / "report.html", [record], title=title, images=config.report)
    log.info("scores, captions and report: %s", folder)
    return Evaluation(images, captions, dict(record.scores), folder)


def _of_how_many(paths: Sequence[Path]) -> str:
    """What the folder of an ensemble's scores is called by, beside its first checkpoint."""
    return f"ensemble_of_{len(paths)}_" if len(paths) > 1 else ""


def _shown(caption: Caption) -> ShownCaption:
    words = [(word, round(p, 4)) for word, p in caption.words]
    return ShownCaption(caption.text, words, round(caption.log_prob, 4))


def _training_set(
    config: schema.EvaluateConfig,
    trained: TrainedCaptioner,
    data: CaptionData,
    images: Sequence[CaptionedImage],
) -> TrainingSet:
    """The training set beside the split: its captions, features where they are cached, pictures."""
    if config.split == "train" or not data.splits.get("train"):
        return TrainingSet(vocabulary=len(trained.vocabulary))
    training = data.splits["train"]
    features = None
    if not trained.features.trained and not data.missing_images("train"):
        features = [_mean_features(trained, part) for part in (training, images)]
    paths = [[image.path for image in part] for part in (images, training)]
    return TrainingSet(
        captions=[image.captions for image in training],
        training_features=features[0] if features else None,
        features=features[1] if features else None,
        vocabulary=len(trained.vocabulary),
        leakage=find_leakage(*paths) if config.leakage else None,
    )


def _mean_features(trained: TrainedCaptioner, images: Sequence[CaptionedImage]) -> Any:
    """One vector a picture, [I, F]: the mean of its regions."""
    source = trained.features.source(images)
    parts = torch.arange(len(images)).split(500)
    return torch.cat([source(rows).float().flatten(1, -2).mean(1) for rows in parts]).numpy()


def _protocol(
    config: schema.EvaluateConfig, paths: Sequence[Path], trained: TrainedEnsemble
) -> dict[str, Any]:
    """What a score depends on besides the captions: the entries of its protocol card."""
    return {
        "split": config.split,
        "generation": dataclasses.asdict(config.generation),
        "vocabulary": len(trained.vocabulary),
        "checkpoint": ", ".join(
            f"{path} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for path in paths
        ),
        "torch": torch.__version__,
    }


def caption_images(
    trained: TrainedEnsemble, images: Sequence[CaptionedImage], generation: schema.GenerationConfig
) -> list[list[Caption]]:
    """The captions of every image, best first, with a progress bar."""
    source = trained.source(images)
    rows = torch.arange(len(images)).split(generation.batch_size)
    batches = (source(part) for part in tqdm(rows, desc="captions", unit="batch"))
    return list(trained.generator(generation).all_captions(batches))


def caption_files(config: schema.CaptionConfig) -> Iterator[tuple[Path, list[Caption]]]:
    """Caption pictures that are in no data set: files, folders and globs, one after another."""
    paths = find_pictures(config.images)
    paths_of_models = checkpoint_paths(config.checkpoint)
    trained = load_ensemble(paths_of_models, device=pick_device(config.device))
    generator = trained.generator(config.generation)
    for path in paths:
        yield path, generator.captions(trained.of_image(load_image(path)))[0]


def find_pictures(images: str | Iterable[str]) -> list[Path]:
    """The picture files that names, folders and globs stand for; DataError when there are none."""
    names = images.split(",") if isinstance(images, str) else list(images)
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
            if not inside:
                raise DataError(f"the folder {path} holds no pictures")
            found += inside
        elif path.exists() or not glob.has_magic(name):
            found.append(path)
        else:
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207 any root
            if not matches:
                raise DataError(f"no file matches {name}")
            found += matches
    return found


def captions_as_json(captioned: Iterable[tuple[Path, list[Caption]]]) -> list[dict[str, Any]]:
    """What caption.py writes: of each file its captions with all probabilities."""
    return [
        {
            "image": str(path),
            "captions": [
                {
                    "caption": one.text,
                    "log_prob": one.log_prob,
                    "words": [list(w) for w in one.words],
                }
                for one in found
            ],
        }
        for path, found in captioned
    ]
