"""Small folders of image files whose contents are known, and a supernet that they fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import CONFIGS
from PIL import Image

from prance_env.images.source import ImageSource
from prance_env.images.transform import ImageTransform

SIZE = (50, 44)
CONFIG = replace(CONFIGS["conv-fixed-lln"], num_classes=3)
TRANSFORM = ImageTransform(CONFIG.img_size, 3, 0.875, "bicubic")


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth picture in colour, different for every seed, so that JPEG hardly changes it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def image_folder(root: Path, per_class: int = 4, classes: int = 3, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """`root/<split>/<class>/<file>`, every other file a PNG; without splits, `root/<class>/<file>`."""
    for s, split in enumerate(splits or ("",)):
        for k in range(classes):
            folder = root / split / f"class_{k}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                ending = "png" if i % 2 else "jpg"
                picture(1000 * s + 100 * k + i).save(folder / f"{i:03d}.{ending}")
    return root


def files_of(folder: Path) -> list[Path]:
    """In the order of the images."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def expected_pixels(files: list[Path]) -> torch.Tensor:
    """What the files show."""
    return torch.from_numpy(np.stack([TRANSFORM(Image.open(f)) for f in files]))


def everything(source: ImageSource) -> torch.Tensor:
    """All images."""
    return source.fetch(np.arange(len(source)))


def break_files(root: Path, *numbers: int) -> list[Path]:
    """Cuts files short, or fills them with text."""
    files = files_of(root)
    for k in numbers:
        files[k].write_bytes(files[k].read_bytes()[:200] if k % 2 == 0 else b"no image")
    return files
