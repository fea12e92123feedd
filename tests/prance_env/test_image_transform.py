"""Every kind of file becomes what a viewer would show, at the size that timm's evaluation would give."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from command_line import prance
from helpers import ENV_ID, random_net
from image_files import CONFIG, picture
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from agents import FullAgent
from prance_env import EnvSettings
from prance_env.images.transform import ImageTransform, upright
from supernet import save_pretrained
from supernet.config import CROP_MODES
from train.evaluate import evaluate

RGB, GREY = ImageTransform(32, 3, 0.875, "bicubic"), ImageTransform(32, 1, 0.875, "bicubic")


@pytest.mark.parametrize("size", [(80, 50), (50, 80), (20, 25)], ids=["wide", "tall", "small"])
@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear"), (0.9, "lanczos")])
def test_the_transform_is_timms_for_evaluation(
    size: tuple[int, int], mode: str, crop_pct: float, interpolation: str
) -> None:
    image, cropped = picture(0, size), {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    timm = create_transform((3, 32, 32), normalize=False, mean=(0.2, 0.5, 0.9), **cropped)
    config = replace(CONFIG, mean=(0.2, 0.5, 0.9))
    by_the_supernet = ImageTransform.of(replace(config, **cropped))  # type: ignore[arg-type]
    assert by_the_supernet == ImageTransform.of(config, crop_pct, mode, interpolation)
    ours = by_the_supernet(image)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, torch.as_tensor(timm(image)))


def test_a_border_of_grey_images_is_grey() -> None:
    config = replace(CONFIG, in_chans=1, mean=(0.5,), std=(0.5,), crop_mode="border", crop_pct=1.0)
    shown = ImageTransform.of(config)(picture(0, (80, 40)))
    assert (shown[:, 0] == 128).all()
    assert len(np.unique(shown[:, 16])) > 2


def test_a_picture_in_lab_is_shown_in_grey_as_well() -> None:
    lab = Image.frombytes("LAB", (40, 40), bytes((120, 140, 90)) * 40**2)
    np.testing.assert_array_equal(upright(lab, 1), upright(upright(lab, 3), 1))


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[str, Tensor]:
    """A supernet whose images are squashed whole, and what it should be shown of two pictures."""
    config = replace(CONFIG, crop_pct=1.0, crop_mode="squash", interpolation="bilinear")
    save_pretrained(random_net(config), tmp_path / "net")
    pixels = []
    for k, size in enumerate(((80, 50), (50, 80))):
        (tmp_path / "images" / "val" / str(k)).mkdir(parents=True)
        picture(k, size).save(tmp_path / "images" / "val" / str(k) / "0.png")
        squashed = picture(k, size).resize((config.img_size, config.img_size), Image.Resampling.BILINEAR)
        pixels.append(np.asarray(squashed).transpose(2, 0, 1))
    return str(tmp_path), torch.from_numpy(np.stack(pixels))


def test_images_are_prepared_as_the_supernet_says_through_every_door(
    prepared: tuple[str, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, pixels = prepared
    arguments: dict[str, Any] = {"checkpoint": f"{folder}/net", "dataset": f"{folder}/images", "split": "val"}
    settings = EnvSettings(**arguments)
    torch.testing.assert_close(settings.engine().dataset.fetch(np.arange(2)), pixels, rtol=0, atol=0)
    agent = FullAgent(settings.config())
    expected = settings.engine().net(pixels).argmax(1).numpy()
    np.testing.assert_array_equal(evaluate(agent, settings).prediction, expected)
    env = gym.make(ENV_ID, **arguments)
    for k in range(2):
        env.reset(options={"index": k})
        while not (last := env.step(np.ones(env.action_space.shape, dtype=np.float32)))[2]:
            pass
        assert last[4]["prediction"] == expected[k]
    given = (word for name, value in arguments.items() for word in (f"--{name}", value))
    prance(monkeypatch, "eval", "--agent", "full", *given, "--out", tmp_path / "eval")
    with (tmp_path / "eval" / "full.csv").open() as f:
        assert [int(row["prediction"]) for row in csv.DictReader(f)] == expected.tolist()


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
