from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from captioner.errors import ConfigError
from captioner.models.transforms import ImageTransform


def noise_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("sides", [(75, 50), (50, 75), (61, 61), (33, 120), (32, 40)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_torchvisions(sides: tuple[int, int], interpolation: str) -> None:
    image = noise_image(*sides)
    preset = ImageClassification(
        crop_size=32, resize_size=37, interpolation=InterpolationMode(interpolation)
    )
    ours = ImageTransform(size=32, resize=37, interpolation=interpolation)(image)
    assert ours.shape == (3, 32, 32) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, preset(image), rtol=0, atol=1e-5)


def test_squash_keeps_the_whole_image() -> None:
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (0, 0, 45, 30))
    half = (0.5, 0.5, 0.5)
    tensor = ImageTransform(
        size=32, resize="squash", interpolation="bilinear", mean=half, std=half
    )(image)
    assert tensor.shape == (3, 32, 32)
    assert bool((tensor[:, :, :12] == 1).all()) and bool((tensor[:, :, -12:] == -1).all())


def test_grey_and_transparent_images_become_rgb() -> None:
    transform = ImageTransform(size=8, resize=8)
    assert transform(Image.new("L", (9, 9), 100)).shape == (3, 8, 8)
    assert transform(Image.new("RGBA", (9, 9), (1, 2, 3, 4))).shape == (3, 8, 8)


def test_text_tells_every_setting() -> None:
    base = ImageTransform(size=32, resize=37)
    others = [
        ImageTransform(size=31, resize=37),
        ImageTransform(size=32, resize=36),
        ImageTransform(size=32, resize="squash"),
        ImageTransform(size=32, resize=37, interpolation="bicubic"),
        ImageTransform(size=32, resize=37, mean=(0.5, 0.5, 0.5)),
        ImageTransform(size=32, resize=37, std=(0.5, 0.5, 0.5)),
    ]
    assert len({str(transform) for transform in [base, *others]}) == 7
    assert str(base) == str(ImageTransform(size=32, resize=37))


def test_adjusted_keeps_the_crops_share() -> None:
    base = ImageTransform(size=224, resize=256)
    assert base.adjusted() == base
    assert base.adjusted(size=112) == ImageTransform(size=112, resize=128)
    assert base.adjusted(resize="squash") == ImageTransform(size=224, resize="squash")
    assert base.adjusted(resize="squash").adjusted(size=64).resize == "squash"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0, "resize": 8}, "at least 1"),
        ({"size": 9, "resize": 8}, "smaller than the crop"),
        ({"size": 8, "resize": "crop"}, "squash"),
        ({"size": 8, "resize": 8, "interpolation": "cubic"}, "bicubic"),
        ({"size": 8, "resize": 8, "std": (1.0, 0.0, 1.0)}, "std > 0"),
    ],
)
def test_contradictions_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageTransform(**settings)
