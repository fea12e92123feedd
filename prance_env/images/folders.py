"""Images in a folder, laid out as ImageNet is: `folder/<split>/<class>/*.jpg`, or `folder/<class>/*.jpg`."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from .config import DatasetConfig
from .decoded import DecodedSource
from .transform import ImageTransform

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Files:
    """Image files by number.

    Attributes:
        folder: What they are in.
        paths: Where they are.
    """

    folder: str
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """Opens one; may raise anything if it is broken."""
        return Image.open(self.paths[index])

    def name(self, index: int) -> str:
        """Its path."""
        return self.paths[index]

    def identity(self) -> str:
        """Changes when a file is added, removed or written again."""
        digest = hashlib.sha256()
        for path in self.paths:
            stat = os.stat(path)
            digest.update(f"{path.removeprefix(self.folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def split_folder(folder: Path, split: str) -> Path:
    """The folder whose subfolders are the classes.

    Args:
        folder: With one folder per split, or with none, in which case it serves every split.
        split: "train", "val" or "test", or another name of theirs in `SPLIT_FOLDERS`.

    Raises:
        ValueError: If the split is unknown or missing.
        PermissionError: If the folder cannot be read.
    """
    names = next((names for names in SPLIT_FOLDERS.values() if split in names), None)
    if names is None:
        raise ValueError(f"split={split!r} is unknown; choose one of {tuple(SPLIT_FOLDERS)}.")
    present = sorted(p.name for p in folder.iterdir() if p.is_dir())
    for name in names:
        if name in present:
            return folder / name
    if others := [name for name in present if any(name in known for known in SPLIT_FOLDERS.values())]:
        raise ValueError(
            f"split={split!r} is not in {folder}, which has {others}; choose one of these or add {names[0]!r}."
        )
    return folder


def check_same_classes(folder: Path, *splits: str) -> None:
    """Checks that all splits have folders of the same classes: labels are numbers of folders, in each split by itself.

    Args:
        folder: As for `split_folder`.
        splits: Names of splits.

    Raises:
        ValueError: If a split lacks a class that another has, or a split is missing.
    """
    classes = {split: {p.name for p in split_folder(folder, split).iterdir() if p.is_dir()} for split in splits}
    for split, own in classes.items():
        if missing := sorted(set().union(*classes.values()) - own):
            raise ValueError(
                f"The split {split!r} of {folder} has no folder of the classes {missing[:8]}, so that its labels would "
                "mean other classes; add them, or name all classes in a class_map."
            )


def load_folder(
    config: DatasetConfig, split: str, transform: ImageTransform, num_workers: int, on_error: str, num_classes: int
) -> DecodedSource:
    """Lists the images of a folder; opens none of them.

    Args:
        config: Its name is the folder.
        split: Which split to take: "train", "val" or "test".
        transform: Brings every picture to the size that the supernet takes.
        num_workers: Processes that decode; 0 decodes in this one.
        on_error: What to do about a broken image: "raise", or "skip" it for the next good one.
        num_classes: Of the supernet; another number of folders is worth a warning, because it usually means that labels
            and logits do not speak of the same classes.

    Raises:
        ValueError: If the split is missing, or there are no classes or images, or the class map lacks a class.
        PermissionError: If the folder cannot be read.
    """
    folder = split_folder(Path(config.name).expanduser(), split)
    try:
        listed = ImageFolder(str(folder))
    except FileNotFoundError as e:
        raise ValueError(f"{folder} is not laid out as <class>/<image files>: {e}") from e
    class_map = config.read_class_map()
    if class_map is not None and (missing := [c for c in listed.classes if c not in class_map]):
        raise ValueError(f"class_map={config.class_map!r} lacks the classes {missing[:8]} of {folder}; add them.")
    if class_map is None and len(listed.classes) < num_classes:
        warnings.warn(
            f"{folder} has {len(listed.classes)} classes, the supernet {num_classes}; label k is the k-th folder by "
            "alphabet. If that is not what the supernet means, pass dataset={'name': ..., 'class_map': FILE}.",
            stacklevel=2,
        )
    label_of = [k if class_map is None else class_map[name] for k, name in enumerate(listed.classes)]
    labels = torch.tensor([label_of[k] for _, k in listed.samples], dtype=torch.int64)
    paths = [path for path, _ in listed.samples]
    return DecodedSource(Files(str(folder), paths), labels, transform, num_workers, on_error)
