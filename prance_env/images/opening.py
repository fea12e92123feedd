"""Opening image files, of which only some formats are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import PIL
from PIL import Image, UnidentifiedImageError

FORMATS = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""What is decoded, whatever a file is called, and how files end that a folder's listing takes. Pillow knows more, among
them PostScript, which another program runs."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Opens an image of one of `FORMATS`.

    Args:
        source: Path of a file, or what its bytes are read from.

    Raises:
        OSError: If it is damaged, of another format or one that this Pillow was built without, or not a regular file.
        ValueError: If it has more pixels than Pillow warns of, `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError("not a regular file")
    try:
        image = Image.open(source, formats=[name for name in FORMATS if name in known_formats()])
    except UnidentifiedImageError as e:
        ending = os.path.splitext(source)[1].lower() if isinstance(source, str | Path) else ""
        missing = [name for name in FORMATS if ending in FORMATS[name] and name not in known_formats()]
        if not missing:
            raise
        raise OSError(f"Pillow {PIL.__version__} here reads no {missing[0]}; install a newer one, or convert it") from e
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {most}; make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    return image


def known_formats() -> set[str]:
    """The formats that this Pillow was built with."""
    Image.init()
    return {*Image.ID}
