"""From an opened image file of any kind to the uint8 array that a supernet takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from supernet import SupernetConfig

Pixels = NDArray[np.uint8]
# Formats whose integers Pillow may call 32 bits wide, though they have 16 and use all of them.
SIXTEEN_BITS = ("PNG", "PPM")
MOST_PIXELS = 2**24
"""Of a picture whose shorter side has been resized: what is 100 times as long as it is wide would take gigabytes."""


def upright(image: Image.Image, in_chans: int) -> Image.Image:
    """The picture that a viewer would show, in grey or in colour.

    The orientation that a camera has noted is applied, 16-bit grey is scaled to 8 bits (Pillow would clip it), and what
    is transparent is shown on white. What has 32 bits is refused, as nobody knows the range of its numbers.

    Args:
        image: Opened by Pillow; loaded or not.
        in_chans: 1 for grey, 3 for colour.

    Raises:
        ValueError: If the image holds floating-point numbers or 32-bit integers.
        OSError: If the file is damaged.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS) or image.mode == "I;16S":
        what = "floating point" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"mode {image.mode!r} ({what}) has no range to show it in; convert the file to 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":  # from which Pillow converts to colour only
        image = image.convert("RGB")
    return image.convert("L" if in_chans == 1 else "RGB")


@dataclass(frozen=True)
class ImageTransform:
    """timm's evaluation transform, without its normalisation, which a supernet does itself.

    Attributes:
        img_size: Height and width of the result in pixels.
        in_chans: 1 or 3.
        crop_pct: The picture is resized to `img_size / crop_pct`, and the centre is cut out; in (0, 1].
        interpolation: A value of `torchvision.transforms.InterpolationMode`, such as "bicubic".
        crop_mode: "center": the shorter side is resized; "squash": both are, whatever the shape; "border": the longer
            one, and what is missing is filled.
        fill: Of borders, for every channel in 0..255; empty is black.
    """

    img_size: int
    in_chans: int
    crop_pct: float
    interpolation: str
    crop_mode: str = "center"
    fill: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.in_chans not in (1, 3):
            raise ValueError(
                f"The supernet takes in_chans={self.in_chans}, but image files have 1 (grey) or 3 (colour); "
                "pass such images with prance_env.register_dataset."
            )

    @classmethod
    def of(
        cls,
        config: SupernetConfig,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        interpolation: str | None = None,
    ) -> ImageTransform:
        """What brings files to the size of a supernet, in the way that its weights were trained for or another one.

        Args:
            config: The supernet.
            crop_pct: None: as the supernet says, and so for the next two.
            crop_mode: See above.
            interpolation: See above.

        Raises:
            ValueError: If image files have other channels than it takes.
        """
        mode = crop_mode or config.crop_mode
        fill = tuple(round(255 * v) for v in config.mean) if mode == "border" else ()
        return cls(
            config.img_size,
            config.in_chans,
            crop_pct or config.crop_pct,
            interpolation or config.interpolation,
            mode,
            fill,
        )

    @cached_property
    def _resize(self) -> Compose:
        size, mode = math.floor(self.img_size / self.crop_pct), InterpolationMode(self.interpolation)
        if self.crop_mode == "border":
            from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio  # seldom needed, and slow to import

            fill: Any = self.fill[0] if len(self.fill) == 1 else self.fill or 0
            whole = ResizeKeepRatio(size, longest=1.0, interpolation=self.interpolation)
            return Compose([whole, CenterCropOrPad(self.img_size, fill)])
        return Compose([Resize((size, size) if self.crop_mode == "squash" else size, mode), CenterCrop(self.img_size)])

    def __call__(self, image: Image.Image) -> Pixels:
        """(in_chans, img_size, img_size) uint8.

        Raises:
            ValueError: If the picture is of a kind that cannot be shown.
            OSError: If the file is damaged.
        """
        pixels = np.asarray(self.picture(upright(image, self.in_chans)))
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))

    def picture(self, image: Image.Image) -> Image.Image:
        """An upright picture, resized and cut.

        Raises:
            ValueError: If it would have more than `MOST_PIXELS` in between.
        """
        short, long = sorted(image.size)
        side = math.floor(self.img_size / self.crop_pct)
        if side * side * long / max(short, 1) > MOST_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} pixels are too long and narrow: with a shorter side of {side} there "
                f"would be more than {MOST_PIXELS} of them; cut it to the part that matters"
            )
        cut: Image.Image = self._resize(image)
        return cut
