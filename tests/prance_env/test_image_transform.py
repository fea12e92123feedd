"""Every kind of file becomes what a viewer would show, at the size that timm's evaluation would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import picture
from PIL import Image
from timm.data import create_transform

from prance_env.images.transform import ImageTransform, upright

RGB, GREY = ImageTransform(32, 3, 0.875, "bicubic"), ImageTransform(32, 1, 0.875, "bicubic")


@pytest.mark.parametrize("size", [(80, 50), (50, 80), (20, 25)], ids=["wide", "tall", "small"])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear")])
def test_the_transform_is_timms_for_evaluation(size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    image = picture(0, size)
    timm = create_transform((3, 32, 32), interpolation=interpolation, crop_pct=crop_pct, normalize=False)
    ours = ImageTransform(32, 3, crop_pct, interpolation)(image)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, torch.as_tensor(timm(image)))


def test_grey_becomes_colour_and_colour_grey() -> None:
    image = picture(1)
    grey = RGB(image.convert("L"))
    assert grey.shape == (3, 32, 32)
    assert (grey == grey[:1]).all()
    np.testing.assert_array_equal(GREY(image), GREY(image.convert("L")))
    assert GREY(image).shape == (1, 32, 32)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        shown = np.asarray(upright(image, 1))
    np.testing.assert_array_equal(shown, (ramp / 257).round())
    with Image.open(tmp_path / "deep.png") as image:  # as Pillow before 11 opens it
        older = image.convert("I")
        older.format = "PNG"
    np.testing.assert_array_equal(np.asarray(upright(older, 1)), shown)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_range_are_refused_and_not_black(kind: type, tmp_path: Path) -> None:
    numbers = np.arange(64 * 64).reshape(64, 64) // 16  # 0 to 255, which 16 bits would show as black
    Image.fromarray(numbers.astype(kind)).save(tmp_path / "wide.tif")
    with Image.open(tmp_path / "wide.tif") as image, pytest.raises(ValueError, match=r"mode '[IF]'.*8 or 16 bits"):
        upright(image, 1)
    with pytest.raises(ValueError, match=r"mode '[IF]'"):
        upright(Image.fromarray(numbers.astype(kind)), 3)


def test_what_is_transparent_is_shown_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:, :4] = (200, 10, 20, 255)  # left half opaque; the right one hides black
    rgba = Image.fromarray(pixels)
    for image in (rgba, rgba.convert("LA")):
        shown = np.asarray(upright(image, 3))
        assert (shown[:, 4:] == 255).all()
        assert (shown[:, :4] < 210).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    palette.paste(0, (0, 0, 8, 4))
    palette.save(tmp_path / "palette.png", transparency=0)
    with Image.open(tmp_path / "palette.png") as image:
        shown = np.asarray(upright(image, 3))
    assert (shown[:4] == 255).all()
    assert (shown[4:] == (50, 60, 70)).all()


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    image = picture(2)
    image.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    with Image.open(tmp_path / "print.jpg") as opened:
        assert opened.mode == "CMYK"
        difference = np.abs(RGB(opened).astype(int) - RGB(image).astype(int))
    assert difference.mean() < 4


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)],
)
def test_the_orientation_of_the_camera_is_applied(orientation: int, undo: Image.Transpose, tmp_path: Path) -> None:
    image = picture(3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(undo).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        np.testing.assert_array_equal(RGB(turned), RGB(image))


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="mode 'F'"):
        RGB(Image.new("F", (9, 9)))
    with pytest.raises(ValueError, match=r"in_chans=4.*register_dataset"):
        ImageTransform(32, 4, 0.875, "bicubic")
