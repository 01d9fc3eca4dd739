"""The evaluation of captioners: a split is captioned and scored."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch

from captioner import config as schema
from captioner.build.checkpoint import TrainedCaptioner
from captioner.build.components import load_data, pick_device, scene_metrics
from captioner.build.ensemble import TrainedEnsemble, load_ensemble
from captioner.commands.attention import image_maps, scene_attention, shown_maps
from captioner.commands.scoring import (
    checkpoint_card,
    score_split,
    scoring_options,
)
from captioner.commands.trained import data_of, generation_of
from captioner.data.captions import CaptionData, CaptionedImage
from captioner.evaluation.coco_format import write_results
from captioner.evaluation.leakage import find_leakage
from captioner.evaluation.records import ImageRecord, ShownCaption, save_record
from captioner.evaluation.report import write_report
from captioner.evaluation.sanity import TrainingSet
from captioner.inference.attention import CaptionMaps
from captioner.inference.captions import Caption
from captioner.progress import track
from captioner.training.model_folder import results_folder, weights_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A captioned and scored split, and its name; `folder` holds scores.json, captions.json and
    report.html."""

    name: str
    images: Sequence[CaptionedImage]
    captions: Sequence[list[Caption]]
    scores: dict[str, Any]
    folder: Path


def evaluate_checkpoint(config: schema.EvaluateConfig) -> Evaluation:
    """Caption a split of the checkpoint's data set, or of `data`, and score it.

    The files go into `out`, by default a folder of the run named after split and method.
    """
    given = schema.checkpoint_paths(config.checkpoint)
    trained = load_ensemble(given, device=pick_device(config.device), views=config.views)
    paths = [weights_file(one) for one in given]
    run, count = paths[0].parent.name, len(paths)
    generation = generation_of(trained.members[0].checkpoint, config.generation)
    data_config = data_of(trained.data, config.data)
    if schema.given_keys(config.data) is not None:  # that of training, perhaps elsewhere by now
        first = dataclasses.replace(trained.members[0], data=data_config)
        trained = dataclasses.replace(trained, members=(first, *trained.members[1:]))
    data = load_data(data_config)
    images = data.split(config.split)
    captions = caption_images(trained, images, generation)
    best = {image.image_id: found[0].text for image, found in zip(images, captions, strict=True)}
    scenes = isinstance(data_config, schema.ScenesData)
    attended = len(images) if scenes else config.report
    maps = image_maps(trained, images[:attended], captions[:attended], generation)
    extra = {}
    if scenes:
        by_name = {image.name: found[0].text for image, found in zip(images, captions, strict=True)}
        figures = {**scene_metrics(images)(by_name), **scene_attention(images, captions, maps)}
        extra = {k: round(v, 2) for k, v in figures.items()}
    method = generation.method + (str(generation.beam_size) if generation.method == "beam" else "")
    if generation.rerank != "none":
        table = generation.document_frequencies
        method += f"_{generation.rerank}" + (f"_{Path(table).stem}" if table else "")
    parts = [config.split, *([f"ensemble_of_{count}"] if count > 1 else [])]
    parts += [] if config.views == ["original"] else ["_".join(config.views)]
    folder = Path(config.out or results_folder(given[0], "_".join([*parts, method])))
    shown = chain(maps[: config.report], repeat(repeat(None)))  # no maps beyond
    record = score_split(
        scoring_options(config),
        [
            ImageRecord(i.image_id, list(map(_shown, found, own)), i.captions, str(i.path))
            for i, found, own in zip(images, captions, shown, strict=False)
        ],
        name=f"{run if count == 1 else f'{count} from {run}'} {config.split} {method}",
        card={
            "data": data.name,
            "split": config.split,
            "generation": dataclasses.asdict(generation),
            "views": config.views,
            "vocabulary": len(trained.vocabulary),
            "checkpoint": checkpoint_card(paths),
            "torch": torch.__version__,
        },
        training=_training_set(config, trained.members[0], data, images) if config.sanity else None,
        extra=extra,
    )
    save_record(folder / "scores.json", record)
    write_results(folder / "captions.json", best)
    if config.report:
        title = f"Captions of {record.name}"
        write_report(folder / "report.html", [record], title=title, images=config.report)
    log.info("scores, captions and report: %s", folder)
    return Evaluation(record.name, images, captions, dict(record.scores), folder)


def _shown(caption: Caption, maps: CaptionMaps | None) -> ShownCaption:
    words = [(word, round(p, 4)) for word, p in caption.words]
    shown = None if maps is None else shown_maps(maps)
    return ShownCaption(caption.text, words, round(caption.log_prob, 4), shown)


def _training_set(
    config: schema.EvaluateConfig,
    trained: TrainedCaptioner,
    data: CaptionData,
    images: Sequence[CaptionedImage],
) -> TrainingSet:
    """The training set's captions, features where they are cached, and images like the split's."""
    if config.split == "train" or not data.splits.get("train"):
        return TrainingSet(vocabulary=len(trained.vocabulary))
    training = data.splits["train"]
    features = None, None
    if not trained.features.trained and not data.missing_images("train"):
        if config.sanity == "full" or trained.features.is_extracted(training):
            features = _mean_features(trained, training), _mean_features(trained, images)
        else:
            log.info(
                "left out the captions of the nearest training images: their features are not in "
                "%s (sanity=full extracts them)",
                trained.features.cache_dir,
            )
    paths = [[image.path for image in part] for part in (images, training)]
    return TrainingSet(
        captions=[image.captions for image in training],
        training_features=features[0],
        features=features[1],
        vocabulary=len(trained.vocabulary),
        leakage=find_leakage(*paths) if config.leakage else None,
    )


def _mean_features(trained: TrainedCaptioner, images: Sequence[CaptionedImage]) -> Any:
    """One vector an image, [I, F]: the mean of its regions."""
    source = trained.features.source(images)
    parts = torch.arange(len(images)).split(500)
    shown = track(parts, len(parts), "nearest images", units="parts")
    return torch.cat([source(rows).float().flatten(1, -2).mean(1) for rows in shown]).numpy()


def caption_images(
    trained: TrainedEnsemble, images: Sequence[CaptionedImage], generation: schema.GenerationConfig
) -> list[list[Caption]]:
    """The captions of every image, best first, with a progress bar."""
    generator = trained.generator(generation, images=len(images))
    source = trained.source(images)
    rows = torch.arange(len(images)).split(generation.batch_size)
    batches = (source(part) for part in track(rows, len(rows), "captions", units="batches"))
    return list(generator.all_captions(batches))
