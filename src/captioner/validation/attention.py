"""What a validation shows and measures of where a captioner looks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from captioner.data.captions import CaptionedImage
from captioner.data.images import load_image
from captioner.inference.attention import CaptionMaps, RegionGrid
from captioner.inference.captions import Caption, CaptionGenerator, ImageBatches
from captioner.inspection.attention_panels import attention_panels

# Best captions (words and maps) by image name -> figures.
AttentionMetrics = Callable[[Mapping[str, tuple[Sequence[str], CaptionMaps]]], dict[str, float]]


@dataclass(frozen=True)
class AttentionViews:
    """The maps of best captions: as images for TensorBoard, and as figures by `metrics`."""

    generator: CaptionGenerator
    images: Sequence[CaptionedImage]
    source: ImageBatches
    grid: RegionGrid
    batch_size: int
    metrics: AttentionMetrics | None = None

    def figures(self, captions: Sequence[Sequence[Caption]]) -> dict[str, float]:
        """The figures of the captions of all images; none without `metrics`."""
        if self.metrics is None:
            return {}
        maps = self.maps(captions)
        found = zip(self.images, captions, maps, strict=True)
        return self.metrics({image.name: (_words(one[0]), own) for image, one, own in found})

    def show(self, writer: Any, step: int, captions: Sequence[Sequence[Caption]]) -> None:
        """Write a panel for each word of the captions of the first images."""
        found = zip(self.images, captions, self.maps(captions), strict=False)
        for number, (image, one, maps) in enumerate(found):
            panels = attention_panels(load_image(image.path), _words(one[0]), maps)
            pixels = np.asarray(panels)
            writer.add_image(f"attention/{number}", pixels, step, dataformats="HWC")

    def maps(self, captions: Sequence[Sequence[Caption]]) -> list[CaptionMaps]:
        """Those of the best captions of the first images, one after another."""
        maps: list[CaptionMaps] = []
        for rows in torch.arange(len(captions)).split(self.batch_size):
            best = [captions[row][:1] for row in rows.tolist()]
            found = self.generator.attention_maps(self.source(rows), best, self.grid)
            maps += [one for (one,) in found]
        return maps


def _words(caption: Caption) -> list[str]:
    return [word for word, _ in caption.words]
