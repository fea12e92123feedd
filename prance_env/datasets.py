"""Image sources: what an environment shows its agents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .digits import check_split, make_scenes

# Scenes per split of the bundled data set; always the same ones.
DIGITS_SCENES = {"train": 16384, "val": 4096, "test": 4096}


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        difficulty: (N,) int64, a stratum to break results down by.
        difficulty_name: What `difficulty` counts.
    """

    images: Tensor
    labels: Tensor
    difficulty: Tensor
    difficulty_name: str

    def __len__(self) -> int:
        return len(self.labels)


def check_dataset(name: str, split: str) -> None:
    """Raises ValueError unless there is such a data set with such a split."""
    if name != "digits":
        raise ValueError(f"dataset={name!r} is unknown; available is 'digits'.")
    check_split(split)


def load_dataset(name: str, split: str) -> ImageDataset:
    """Loads a data set by name.

    Args:
        name: "digits".
        split: "train", "val" or "test".

    Raises:
        ValueError: If the name or the split is unknown.
    """
    check_dataset(name, split)
    scenes = make_scenes(DIGITS_SCENES[split], split, seed=0)
    return ImageDataset(scenes.images, scenes.labels, scenes.num_digits, "num_digits")
