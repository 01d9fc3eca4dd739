"""Where the regions of a captioner lie on an image, and what is measured of its attention."""

import logging
from collections.abc import Mapping, Sequence

from captioner.data.captions import CaptionedImage
from captioner.data.scenes.dataset import load_scene_boxes, load_scene_truth
from captioner.errors import ConfigError
from captioner.features.source import ImageFeatures
from captioner.inference.attention import (
    AttentionModel,
    CaptionMaps,
    RegionGrid,
    refuse_without_attention,
)
from captioner.inference.captions import CaptionGenerator, ImageBatches
from captioner.inspection.attention_on_objects import (
    attention_on_objects,
    more_than_chance,
    on_right_object,
)
from captioner.models.base_captioner import BaseCaptioner
from captioner.validation.attention import AttentionMetrics, AttentionViews

log = logging.getLogger(__name__)


def region_grid(model: BaseCaptioner, features: ImageFeatures) -> RegionGrid:
    """How the regions that a captioner attends to lie on an image.

    ConfigError, one sentence, where there are no attention maps: the model has no attention, an
    image is one region, or it is not known where they are.
    """
    refuse_without_attention(model)
    if model.regions in (None, 1):
        raise ConfigError(
            "there are no attention maps: an image is one region, its pooled features; "
            "encoder.output=grid has several"
        )
    encoder = features.encoder
    if encoder is None:
        return RegionGrid.square(model.regions)
    rows, columns = encoder.grid if encoder.grid_size is None else (encoder.grid_size,) * 2
    return RegionGrid(rows, columns, encoder.transform.crop)


def find_grid(model: BaseCaptioner, features: ImageFeatures) -> RegionGrid | None:
    """The same, or None, where the log says why there are no attention maps."""
    try:
        return region_grid(model, features)
    except ConfigError as error:
        log.info("%s", error)
        return None


def scene_attention_metrics(images: Sequence[CaptionedImage]) -> AttentionMetrics:
    """How often (in percent) the attention of a word that describes an object of a scene falls on
    that object more than chance, and more than on the other one."""
    folder = images[0].path.parent
    truth, boxes = load_scene_truth(folder), load_scene_boxes(folder)

    def metrics(captions: Mapping[str, tuple[Sequence[str], CaptionMaps]]) -> dict[str, float]:
        words = attention_on_objects(captions, truth, boxes)
        return {
            "attention_on_object": 100 * more_than_chance(words),
            "attention_on_right_object": 100 * on_right_object(words),
        }

    return metrics


def attention_views(
    generator: CaptionGenerator,
    features: ImageFeatures,
    images: Sequence[CaptionedImage],
    source: ImageBatches,
    *,
    batch_size: int,
    scenes: bool,
) -> AttentionViews | None:
    """What a validation shows of where a captioner looks, and measures where the images are drawn
    `scenes`; None for a model without attention maps."""
    model = generator.model
    if not isinstance(model, BaseCaptioner) or not isinstance(model, AttentionModel):
        return None
    grid = find_grid(model, features)
    if grid is None:
        return None
    metrics = scene_attention_metrics(images) if scenes else None
    return AttentionViews(generator, images, source, grid, batch_size, metrics)
