"""Where a captioner looks, for evaluate.py."""

from collections.abc import Sequence

import torch

from captioner import config as schema
from captioner.build.attention import find_grid, scene_attention_metrics
from captioner.build.ensemble import TrainedEnsemble
from captioner.data.captions import CaptionedImage
from captioner.evaluation.attention import WordMaps
from captioner.inference.attention import CaptionMaps
from captioner.inference.captions import Caption
from captioner.progress import track


def image_maps(
    trained: TrainedEnsemble,
    images: Sequence[CaptionedImage],
    captions: Sequence[Sequence[Caption]],
    generation: schema.GenerationConfig,
) -> list[list[CaptionMaps]]:
    """The attention maps of every image's captions; [], and a line in the log, of a model that has
    none. An ensemble, or several views, have none: each may look elsewhere."""
    grid = find_grid(trained.members[0].model, trained.members[0].features)
    if grid is None or len(trained.members) > 1 or trained.views != ("original",) or not images:
        return []
    generator, source = trained.generator(generation), trained.source(images)
    found: list[list[CaptionMaps]] = []
    rows = torch.arange(len(images)).split(generation.batch_size)
    for part in track(rows, len(rows), "attention", units="batches"):
        told = [captions[row] for row in part.tolist()]
        found += generator.attention_maps(source(part), told, grid)
    return found


def scene_attention(
    images: Sequence[CaptionedImage],
    captions: Sequence[Sequence[Caption]],
    maps: Sequence[Sequence[CaptionMaps]],
) -> dict[str, float]:
    """How often the best captions' attention falls on the objects of drawn scenes, in percent."""
    if not maps:
        return {}
    best = {
        image.name: ([word for word, _ in told[0].words], own[0])
        for image, told, own in zip(images, captions, maps, strict=True)
    }
    return scene_attention_metrics(images)(best)


def shown_maps(maps: CaptionMaps) -> WordMaps:
    """A caption's maps as a report has them."""
    return WordMaps.of(maps.weights, maps.sentinel, crop=maps.grid.crop)
