"""Panels: bright where the weight is, within what the encoder sees, and a line for the sentinel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captioner.inference.attention import CaptionMaps, RegionGrid
from captioner.inspection.attention_panels import DARKEST, attention_panels, veiled

GREY = Image.new("RGB", (60, 40), (200, 200, 200))
DARK = 200 * (1 - DARKEST)


def weights(cell: tuple[int, int], shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    found = np.zeros(shape, np.float32)
    found[cell] = 0.7
    return found


def test_the_image_is_bright_where_the_weight_is() -> None:
    pixels = np.asarray(veiled(GREY, weights((1, 4)), None)).astype(float)
    assert pixels.shape == (40, 60, 3)
    assert pixels[15, 45, 0] == pytest.approx(200, abs=20)  # nearly the cell's centre
    assert pixels[35, 5, 0] == pytest.approx(DARK, abs=1)
    even = np.asarray(veiled(GREY, np.full((4, 6), 0.01), None))
    assert (even == 200).all()


def test_outside_of_the_crop_all_is_dark() -> None:
    even = np.ones((3, 3))
    pixels = np.asarray(veiled(GREY, even, 0.5)).astype(float)[..., 0]
    inside = np.zeros((40, 60), bool)
    inside[10:30, 20:40] = True
    np.testing.assert_allclose(pixels[inside], 200)
    np.testing.assert_allclose(pixels[~inside], DARK, atol=1)


def test_a_sheet_has_the_image_and_a_panel_for_each_word() -> None:
    maps = CaptionMaps(
        np.stack([weights((0, 0)), weights((3, 5)), weights((2, 2))]),
        np.array([0.0, 1.0, 0.5], np.float32),
        RegionGrid(4, 6),
    )
    sheet = attention_panels(GREY, ["a", "dog", "ran"], maps, side=60, columns=2)
    width, height = sheet.width // 2, sheet.height // 2
    pixels = np.asarray(sheet).astype(int)
    assert (pixels[:40, :60] == 200).all()  # the image itself
    assert pixels[3, width + 3, 0] > 180 and pixels[36, width + 56, 0] < 70
    assert pixels[height + 3, 3, 0] < 70 and pixels[height + 36, 56, 0] > 180
    line = pixels[[41, height + 41, height + 41], :, 2] < 100  # orange, not white
    assert line[0, width : width + 60].sum() <= 1
    assert line[1, :60].all() and line[2, width : width + 25].all()
    assert not line[2, width + 35 :].any()
    without = CaptionMaps(maps.weights, None, maps.grid)
    plain = np.asarray(attention_panels(GREY, ["a", "dog", "ran"], without, side=60, columns=2))
    assert (plain[41] == 255).all()
