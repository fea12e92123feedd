"""Opening image files, of which only some formats are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called. Pillow knows more, among them PostScript, which another program runs."""


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Opens an image of one of `FORMATS`.

    Args:
        source: Path of a file, or what its bytes are read from.

    Raises:
        OSError: If it is damaged, of another format, or not a regular file.
        ValueError: If it has more pixels than Pillow warns of, `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError("not a regular file")
    image = Image.open(source, formats=[name for name in FORMATS if name in known_formats()])
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {most}; make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    return image


def suffixes() -> set[str]:
    """How files of `FORMATS` end, by Pillow's list."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def known_formats() -> set[str]:
    """The formats that this Pillow was built with."""
    Image.init()
    return {*Image.ID}
