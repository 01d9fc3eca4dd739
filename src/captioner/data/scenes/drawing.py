"""Drawing one scene: the places, shapes and colours of its objects, and the noisy background.

Positions and radii (of the circle around an object) are in units of the image's side, y down.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from captioner.data.scenes.captions import Scene

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_RGB = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (240, 215, 30),
    "green": (40, 150, 50),
    "blue": (40, 85, 215),
    "purple": (125, 45, 160),
    "pink": (250, 130, 195),
    "black": (30, 30, 30),
}
RADIUS = {"small": (0.105, 0.115), "large": (0.158, 0.170)}
_GROUP = {"one": (0.0,), "two": (-0.19, 0.19)}
_JITTER = 0.015  # each object of a group; neighbours 0.38 apart still clear two large radii
# Along the line of the relation, one side and, mirrored, the other.
_DEPTH = (0.19, 0.29)
# Across it: how far the whole scene moves without leaving the image, and the other object alone.
_SHIFT = 0.12
_STRAY = 0.08
_SUPERSAMPLING = 4
_NOISE = 5.0  # grey levels, to either side


@dataclass(frozen=True)
class Group:
    """Equal objects as they are drawn: their centres, the radius of each, shape and colour."""

    shape: str
    fill: tuple[int, ...]
    radius: float
    centres: list[Point]

    def boxes(self) -> list[Box]:
        """The smallest box around each object."""
        outline = [(self.radius * dx, self.radius * dy) for dx, dy in _OUTLINES[self.shape]]
        left, top = (min(along) for along in zip(*outline, strict=True))
        right, bottom = (max(along) for along in zip(*outline, strict=True))
        return [(x + left, y + top, x + right, y + bottom) for x, y in self.centres]


def draw_scene(scene: Scene, generator: np.random.Generator, *, size: int) -> Image.Image:
    """Draw `scene` as an RGB image of `size` by `size` pixels; the generator sets the jitter."""
    ground, groups = lay_out(scene, generator)
    side = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(canvas)
    for group in groups:
        for x, y in group.centres:
            centre, radius = (x * side, y * side), group.radius * side
            _draw_shape(pen, group.shape, centre, radius, group.fill)
    pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64)
    noise = (2 * generator.random(pixels.shape) - 1) * _NOISE
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def lay_out(
    scene: Scene, generator: np.random.Generator
) -> tuple[tuple[int, ...], tuple[Group, Group]]:
    """The background's colour, and where and how the group and the other object are drawn: what
    `draw_scene` draws with a generator in the same state."""
    ground = tuple(round(_between(generator, 226, 248)) for _ in range(3))
    group, other = place_objects(scene, generator)
    return ground, (
        _group(generator, scene.size, scene.colour, scene.shape, group),
        _group(generator, scene.size2, scene.colour2, scene.shape2, [other]),
    )


def _group(
    generator: np.random.Generator, size: str, colour: str, shape: str, centres: list[Point]
) -> Group:
    radius = _between(generator, *RADIUS[size])
    levels = [round(level + _between(generator, -12, 12)) for level in _RGB[colour]]
    return Group(shape, tuple(min(max(x, 0), 255) for x in levels), radius, centres)


def place_objects(scene: Scene, generator: np.random.Generator) -> tuple[list[Point], Point]:
    """The centres of the group's objects, all of them in the relation, and of the other object."""
    middle = 0.5 + _between(generator, -1, 1) * _SHIFT
    depth = _between(generator, *_DEPTH)

    def jitter() -> float:
        return _between(generator, -_JITTER, _JITTER)

    placed = [(depth + jitter(), middle + offset + jitter()) for offset in _GROUP[scene.count]]
    placed.append((1 - _between(generator, *_DEPTH), middle + _between(generator, -_STRAY, _STRAY)))
    if scene.relation in ("right", "below"):
        placed = [(1 - along, across) for along, across in placed]
    if scene.relation in ("above", "below"):
        placed = [(across, along) for along, across in placed]
    return placed[:-1], placed[-1]


def _between(generator: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * generator.random()


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, fill: tuple[int, ...]
) -> None:
    x, y = centre
    if shape == "ring":
        r = _RING * radius
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=round(0.45 * radius))
    else:
        outline = [(x + radius * dx, y + radius * dy) for dx, dy in _OUTLINES[shape]]
        pen.polygon(outline, fill=fill)


# Shapes that differ in more than their corners: networks soon distinguish them in small images.
_RING = 0.95  # its outer radius
_OUTLINES: dict[str, list[Point]] = {
    "ring": [(-_RING, -_RING), (_RING, _RING)],  # of its box: it is no polygon
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "bar": [(-0.95, -0.36), (0.95, -0.36), (0.95, 0.36), (-0.95, 0.36)],
    "triangle": [(0.0, -1.0), (math.sqrt(0.75), 0.5), (-math.sqrt(0.75), 0.5)],
}
