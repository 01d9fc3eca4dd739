"""Drawing one scene: where its objects stand, their shapes and colours, the noisy ground.

Positions and radii are in units of the picture's side, x to the right and y down; a radius is that
of the circle around an object.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from captioner.data.scene_captions import Scene

Point = tuple[float, float]

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
RADIUS = {"small": (0.070, 0.082), "large": (0.125, 0.138)}
_GROUP = {"one": (0.0,), "two": (-0.155, 0.155), "three": (-0.31, 0.0, 0.31)}
_JITTER = 0.015  # each object of a group; neighbours 0.31 apart still clear two large radii
# Along the line of the relation, one side and, mirrored, the other.
_DEPTH = (0.18, 0.32)
# Across it: how far the whole scene moves without leaving the picture, and the other object alone.
_SHIFT = {"one": 0.12, "two": 0.12, "three": 0.02}
_STRAY = 0.08
_SUPERSAMPLING = 4
_NOISE = 7.0  # grey levels, to either side


def draw_scene(scene: Scene, generator: np.random.Generator, *, size: int) -> Image.Image:
    """Draw `scene` as an RGB picture of `size` by `size` pixels; the generator sets the jitter."""
    ground = tuple(round(_between(generator, 226, 248)) for _ in range(3))
    side = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(canvas)
    group, other = place_objects(scene, generator)
    for centres, size_word, colour, shape in (
        (group, scene.size, scene.colour, scene.shape),
        ([other], scene.size2, scene.colour2, scene.shape2),
    ):
        radius = _between(generator, *RADIUS[size_word]) * side
        fill = tuple(round(level + _between(generator, -12, 12)) for level in _RGB[colour])
        fill = tuple(min(max(level, 0), 255) for level in fill)
        for x, y in centres:
            _draw_shape(pen, shape, (x * side, y * side), radius, fill)
    pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64)
    noise = (2 * generator.random(pixels.shape) - 1) * _NOISE
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def place_objects(scene: Scene, generator: np.random.Generator) -> tuple[list[Point], Point]:
    """The centres of the group's objects and of the other object.

    The group lines up across the line of the relation, so that its every member stands in it.
    """
    middle = 0.5 + _between(generator, -1, 1) * _SHIFT[scene.count]
    depth = _between(generator, *_DEPTH)
    placed = [
        (
            depth + _between(generator, -_JITTER, _JITTER),
            middle + offset + _between(generator, -_JITTER, _JITTER),
        )
        for offset in _GROUP[scene.count]
    ]
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
    if shape == "circle":
        r = 0.95 * radius
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    else:
        outline = [(x + radius * dx, y + radius * dy) for dx, dy in _OUTLINES[shape]]
        pen.polygon(outline, fill=fill)


def _turns(*radii: float, corners: int) -> list[Point]:
    """Corners at equal angles from the top, their radii taken in turn."""
    angles = [2 * math.pi * k / corners for k in range(corners)]
    reach = [radii[k % len(radii)] for k in range(corners)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(reach, angles, strict=True)]


def _square(half: float) -> list[Point]:
    return [(-half, -half), (half, -half), (half, half), (-half, half)]


def _cross(reach: float, half: float) -> list[Point]:
    arm = [(-half, -half), (-half, -reach), (half, -reach)]
    corners: list[Point] = []
    for _ in range(4):
        corners += arm
        arm = [(-y, x) for x, y in arm]
    return corners


_OUTLINES: dict[str, list[Point]] = {
    "square": _square(0.8),
    "triangle": _turns(1.0, corners=3),
    "star": _turns(1.0, 0.42, corners=10),
    "cross": _cross(0.94, 0.3),
}
