from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.data.images import load_image
from captioner.errors import ImageError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_white_stays_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    white = Image.new("RGB", (5, 4), "white")
    if mode == "I;16":
        white = Image.fromarray(np.full((4, 5), 65535, np.uint16))
    elif mode != "RGB":
        white = white.convert(mode)
    white.save(path)
    result = pixels(path)
    assert result.shape == (4, 5, 3)
    assert result.min() >= 253


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(path, quality=95)
    assert np.abs(pixels(path) - RED).max() < 8


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / name)
    result = pixels(tmp_path / name)
    assert (result[..., 0] == np.arange(256).reshape(16, 16)).all()


def test_32_bit_grey_of_unknown_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0.0, 1.0]], np.float32)).save(path)
    with pytest.raises(ImageError, match=r"a\.tif has grey values from 0 to 1 \(mode F\)"):
        load_image(path)
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(path)
    with pytest.raises(ImageError, match="from 0 to 70000"):
        load_image(path)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    rgba.save(tmp_path / "rgba.png")
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), RED)
    keyed.save(tmp_path / "keyed.png", transparency=(1, 2, 3))
    for name in ("rgba.png", "palette.png", "keyed.png"):
        assert pixels(tmp_path / name).tolist() == [[list(WHITE), list(RED)]], name


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert (pixels(tmp_path / "a.gif") == RED).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the top left goes to the top right
    image.save(tmp_path / "a.png", exif=exif)
    result = pixels(tmp_path / "a.png")
    assert result.shape == (4, 2, 3)
    assert result[0, 1].tolist() == list(RED)


def noise(path: Path) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.tif", "a.bmp"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_images(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    data = noise(path)
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=name):
        load_image(path)


def test_missing_empty_and_no_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(ImageError, match=r"there is no image .*a\.jpg"):
        load_image(path)
    path.touch()
    with pytest.raises(ImageError, match=r"a\.jpg is not an image: the file is empty"):
        load_image(path)
    path.write_text("<html>404</html>")
    with pytest.raises(ImageError, match="is not an image: it starts with b'<html>40'"):
        load_image(path)
    with pytest.raises(ImageError, match="cannot read the image"):
        load_image(tmp_path)


def test_huge_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (100, 50)).save(path)
    assert load_image(path, max_pixels=5000).size == (100, 50)
    with pytest.raises(ImageError, match="100 x 50 pixels, expected at most 4999"):
        load_image(path, max_pixels=4999)
    # A header that promises 3.6e9 pixels, beyond what Pillow itself opens.
    path.write_bytes(b"P5\n60000 60000\n255\n")
    with pytest.raises(ImageError, match=r"too large an image: .*3600000000 pixels"):
        load_image(path)


def test_the_result_outlives_the_file(tmp_path: Path) -> None:
    noise(tmp_path / "a.jpg")
    image = load_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    assert image.resize((2, 2)).size == (2, 2)


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    """Its pixels could be any: those of an uncompressed PNG are changed without another sign."""
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png", compress_level=0)
    whole = (tmp_path / "a.png").read_bytes()
    assert (pixels(tmp_path / "a.png") == RED).all()
    for place in (whole.index(b"IDAT") + 30, whole.index(b"IHDR") + 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "b.png").write_bytes(damaged)
        with pytest.raises(ImageError, match=r"b\.png is damaged: the checksum of its part 'I...'"):
            load_image(tmp_path / "b.png")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png is a named pipe, expected a file"):
        load_image(tmp_path / "a.png")
