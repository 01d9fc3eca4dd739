"""Pictures to measure on where there are no photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_pictures(folder: Path, count: int, *, side: int, seed: int) -> list[tuple[str, Path]]:
    """JPEG files with a photograph's coarse shapes and some grain: (name, path) of each."""
    generator = np.random.default_rng([seed, 3])
    pictures = []
    for row in range(count):
        coarse = generator.integers(0, 256, (side // 16, side // 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 6, (side, side, 3))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        path = folder / f"{row}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        pictures.append((path.name, path))
    return pictures
