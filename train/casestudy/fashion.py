"""Fashion-MNIST as a folder of images: 28 x 28 grey pictures of ten kinds of clothes, 60,000 + 10,000."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supernet.files import write_text
from supernet.reading import read_text

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
VAL_FROM = 50_000
DONE, FRESH = "images.txt", "fresh"
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def write_images(
    folder: Path, counts: Mapping[str, int], fresh: int = 0, seed: int = 0, download: Path | None = None
) -> None:
    """Writes `folder/<split>/<class>/<number>.png`, unless it has been done.

    Beside it comes `fresh`, a folder with training images of its own and links to the same validation and test images.

    Validation images are the last 10,000 of the training file, test images those of the test file.

    Args:
        folder: Created if missing.
        counts: How many images of the splits train, val and test.
        fresh: How many further training images.
        seed: Draws which ones.
        download: Where torchvision downloads them to, unless Debian's package has them; None: nowhere.

    Raises:
        ValueError: If there are not as many.
        FileNotFoundError: If there are no images, and they may not be downloaded.
    """
    said = f"seed {seed}, " + ", ".join(f"{split} {count}" for split, count in counts.items()) + f", fresh {fresh}\n"
    done = folder / DONE
    if done.is_file():
        if (held := read_text(done, "the images may be damaged as well: pass another --out")) != said:
            raise ValueError(f"{folder} holds other images ({held.strip()}); pass another --out.")
        return
    for split, (images, labels) in _splits(download).items():
        count, more = counts[split], fresh if split == "train" else 0
        if count + more > len(labels):
            raise ValueError(f"{count + more} {split} images are wanted, but there are {len(labels)}.")
        drawn = np.random.default_rng(seed).permutation(len(labels))
        for root, chosen in ((folder, drawn[:count]), (folder.parent / FRESH, drawn[count : count + more])):
            for i in chosen:
                place = root / split / CLASSES[labels[i]]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[i]).save(place / f"{i:05d}.png")
    if fresh:
        for split in ("val", "test"):
            (link := folder.parent / FRESH / split).unlink(missing_ok=True)
            link.symlink_to(Path("..", folder.name, split))
    write_text(done, said)


def _splits(download: Path | None) -> dict[str, Arrays]:
    (images, labels), test = _read("train", download), _read("t10k", download)
    return {
        "train": (images[:VAL_FROM], labels[:VAL_FROM]),
        "val": (images[VAL_FROM:], labels[VAL_FROM:]),
        "test": test,
    }


def _read(part: str, download: Path | None) -> Arrays:
    """Images (N, 28, 28) and labels (N,) of "train" or "t10k"."""
    if (DEBIAN / f"{part}-labels-idx1-ubyte.gz").is_file():
        return _idx(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28), _idx(f"{part}-labels-idx1-ubyte.gz", 8)
    if download is None:
        raise FileNotFoundError(
            "There is no Fashion-MNIST here: install Debian's package dataset-fashion-mnist, allow --download, or pass "
            "--images FOLDER with images of your own."
        )
    from torchvision.datasets import FashionMNIST

    try:
        data = FashionMNIST(str(download), train=part == "train", download=True)
    except (OSError, RuntimeError) as e:
        raise FileNotFoundError(f"Fashion-MNIST cannot be downloaded: {e}") from e
    return data.data.numpy(), data.targets.numpy().astype(np.uint8)


def _idx(name: str, header: int) -> NDArray[np.uint8]:
    with gzip.open(DEBIAN / name) as f:
        return np.frombuffer(f.read(), np.uint8, offset=header)
