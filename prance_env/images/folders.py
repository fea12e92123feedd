"""Images in a folder, laid out as ImageNet is: `folder/<split>/<class>/*.jpg`, or `folder/<class>/*.jpg`."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from supernet import SupernetConfig
from supernet.files import digest_of, folder_id, parents_of

from .config import DatasetConfig
from .decoded import DecodedSource
from .labels import labels_of, warn_of_few
from .opening import SUFFIXES, open_image
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
        return open_image(self.paths[index])

    def name(self, index: int) -> str:
        """Its path."""
        return self.paths[index]

    def identity(self) -> str:
        """Changes when a file is added, removed or written again."""
        return digest_of(self.paths, self.folder)


def split_folder(folder: Path, split: str) -> Path:
    """The folder whose subfolders are the classes; one that serves every split is worth a warning.

    Args:
        folder: With one folder per split, or with none, in which case it serves every split.
        split: "train", "val" or "test", or another name of theirs in `SPLIT_FOLDERS`.

    Raises:
        ValueError: If the split is unknown or missing.
        PermissionError: If the folder cannot be read.
    """
    found = _split_in(folder, split)
    if found == folder and split not in SPLIT_FOLDERS["train"]:
        warnings.warn(
            f"{folder} has no folders train, val and test, so that the same images serve every split: what is measured "
            f"on split={split!r} says nothing of a network or an agent that was trained on this folder.",
            stacklevel=2,
        )
    return found


def _split_in(folder: Path, split: str) -> Path:
    """`split_folder`, without the warning."""
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


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, by alphabet; hidden ones are no classes."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def training_classes(root: Path) -> list[str]:
    """The classes of the training split, whose order is that of the labels in every split; none if there is no such."""
    names = [name for name in SPLIT_FOLDERS["train"] if (root / name).is_dir()]
    return class_folders(root / names[0]) if names else []


def labelled_classes(root: Path, split: str) -> list[str]:
    """The classes by label: those of the training split or, without one, of this split; none if it is not there."""
    try:
        return training_classes(root) or class_folders(_split_in(root, split))
    except ValueError:
        return []


def image_files(folder: Path) -> list[str]:
    """Paths of the image files in a folder and the folders in it, in the order in which torchvision lists them.

    Links are followed; what is hidden (".ipynb_checkpoints", macOS' "._0.png") or no regular file is left out.

    Raises:
        ValueError: If a link leads back to a folder that it is in, which has no end.
    """
    found: list[str] = []
    _list(str(folder), parents_of(folder), found)
    return [path for _, path in sorted((os.path.dirname(path), path) for path in found)]


def _list(folder: str, above: frozenset[tuple[int, int]], found: list[str]) -> None:
    inside = above | {folder_id(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if folder_id(entry.path) in inside:
                    raise ValueError(f"{entry.path} is a link to a folder that it is in; remove it.")
                _list(entry.path, inside, found)
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                found.append(entry.path)


def load_folder(
    config: DatasetConfig, split: str, transform: ImageTransform, num_workers: int, on_error: str, net: SupernetConfig
) -> DecodedSource:
    """Lists the images of a folder; opens none of them.

    Args:
        config: Its name is the folder.
        split: Which split to take: "train", "val" or "test".
        transform: Brings every picture to the size that the supernet takes.
        num_workers: Processes that decode; 0 decodes in this one.
        on_error: What to do about a broken image: "raise", or "skip" it for the next good one.
        net: The supernet; another number of folders, or names that it does not know, are worth a warning, because
            they usually mean that labels and logits do not speak of the same classes.

    Raises:
        ValueError: If the split is missing, or there are no classes or images, or the class map lacks a class.
        PermissionError: If the folder cannot be read.
    """
    root = Path(config.name).expanduser()
    folder = split_folder(root, split)
    own, by_training = class_folders(folder), training_classes(root)
    named = own if config.class_map is not None or not by_training else by_training
    if unknown := [name for name in own if name not in named]:
        raise ValueError(
            f"{folder} has the classes {unknown[:8]}, which the training split of {root} lacks, and so their labels "
            "are not known; remove them, or pass dataset={'name': ..., 'class_map': FILE}."
        )
    label_of = labels_of(named, config, str(folder), net.class_names)
    if not own:
        raise ValueError(f"{folder} is not laid out as <class>/<image files>: it holds no class folder.")
    paths: list[str] = []
    classes: list[int] = []
    above = parents_of(folder)
    for name in tqdm(own, f"listing {folder}", unit="class", delay=2):
        if folder_id(folder / name) in above:
            raise ValueError(f"{folder / name} is a link to a folder that it is in; remove it.")
        files = image_files(folder / name)
        if not files:
            raise ValueError(
                f"{folder} is not laid out as <class>/<image files>: {name} holds no file that ends in one of "
                f"{', '.join(SUFFIXES)}; remove it, or add images."
            )
        paths += files
        classes += [label_of[name]] * len(files)
    warn_of_few(len(named), net, config, str(folder))
    labels = torch.tensor(classes, dtype=torch.int64, device="cpu")
    return DecodedSource(
        Files(str(folder), paths), labels, transform, num_workers, on_error, {k: name for name, k in label_of.items()}
    )
