"""Small folders of image files whose contents are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (50, 44)


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
