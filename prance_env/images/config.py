"""What the environment's argument `dataset=` says, as plain data, checked before anything is opened."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from supernet.config import CROP_MODES, INTERPOLATIONS
from supernet.reading import check_fields, make_plain, read_text

CLASSES = "class_names.txt"
"""Name of the file in a run folder that holds the names of the classes, one a line, by label."""
NUMERIC = "numeric"
"""As `class_map`: the label of a class is the number that it is named by."""

# Prefix of a timm name: the package it needs, how to get it, and which fields of `DatasetConfig` have a meaning for it.
_TRANSFORM = ("crop_pct", "crop_mode", "interpolation")
_READER = (*_TRANSFORM, "root", "input_key", "target_key")
_HUB = (*_READER, "class_map", "revision")
TIMM_READERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "torch": ("torchvision", "torchvision", (*_TRANSFORM, "root", "download")),
    "hfds": ("datasets", "-e '.[hf]'", _HUB),
    "hfids": ("datasets", "-e '.[hf]'", (*_HUB, "num_samples", "download")),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets tensorflow", (*_READER, "class_map", "download")),
    "wds": ("webdataset", "-e '.[wds]'", (*_READER, "num_samples")),
}
FOLDER_FIELDS = (*_TRANSFORM, "class_map")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""How addresses begin, and commands that WebDataset would run; a single letter is a drive of Windows."""
ADDRESS = re.compile(r"https?://[^\s\"'`\\\x00-\x1f]+")
"""What is fetched from the network. Nothing in it ends a quoted word of a shell."""


def absolute_path(path: str) -> str:
    """The path from the root of the file system, with "~" written out; addresses of the network as they are."""
    if SCHEME.match(path):
        return path
    return os.path.abspath(os.path.expanduser(path))


@dataclass(frozen=True)
class DatasetConfig:
    """Where images come from and how they are brought to size.

    Attributes:
        name: "digits", a name given to `register_dataset`, the path of a folder in ImageNet's layout, or a name of
            `timm.data.create_dataset`: "torch/...", "hfds/...", "hfids/...", "tfds/..." or "wds/...".
        root: Folder of a timm data set; for "wds/FOLDER" it is FOLDER unless given.
        crop_pct: Images are resized to `img_size / crop_pct` before the centre is cut out; in (0, 1]. None: as the
            supernet says, and so for the next two.
        crop_mode: "center": the shorter side is resized; "squash": both are; "border": the longer one, on a border.
        interpolation: One of `supernet.config.INTERPOLATIONS`.
        class_map: Text file with one class name per line; line k is label k. "numeric": classes are named by their
            labels, "0", "1", ... None: alphabetical order of the folders of the training split, or the labels of the
            source.
        input_key: Column or file ending of the images, where a reader has a choice.
        target_key: Column of the labels, where a reader has a choice.
        num_samples: Length of a stream that does not know its own, or of shards without `_info.json`; fewer images are
            an error.
        download: Whether timm may download the data set.
        revision: Commit, tag or branch of a data set on Hugging Face's hub, so that it stays what it is.
    """

    name: str
    root: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    class_map: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    num_samples: int | None = None
    download: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"dataset={self.name!r} is not a name; pass 'digits', a folder or a timm name.")
        check_fields(self)
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct!r} must lie in (0, 1]; 0.875 is usual, 1 crops nothing.")
        for name, allowed in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in (None, *allowed):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")

    @classmethod
    def from_value(cls, value: str | Path | dict[str, Any] | DatasetConfig) -> DatasetConfig:
        """From a name, a folder's path, or a dict with the fields of this class.

        Raises:
            ValueError: If a field is unknown, missing or out of range.
        """
        if isinstance(value, DatasetConfig):
            return value
        if isinstance(value, str | Path):
            return cls(value)  # type: ignore[arg-type]  # which makes it plain
        known = [f.name for f in fields(cls)]
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"dataset={value!r} is neither a name nor a dict with 'name' and some of {known[1:]}.")
        if unknown := sorted(set(value) - set(known)):
            raise ValueError(f"dataset={value!r} has the unknown fields {unknown}; known are {known}.")
        return cls(**value)

    @property
    def prefix(self) -> str | None:
        """Which of timm's readers is meant, if any."""
        prefix, slash, _ = self.name.partition("/")
        return prefix.lower() if slash and prefix.lower() in TIMM_READERS else None

    def absolute(self, registered: list[str]) -> DatasetConfig:
        """The same with absolute paths, which mean the same wherever this process works.

        Args:
            registered: Names of registered data sets, which are no paths.
        """
        name, (prefix, slash, rest) = self.name, self.name.partition("/")
        if self.prefix is None:
            name = name if name in registered else absolute_path(name)
        elif self.prefix != "torch" and os.path.exists(absolute_path(rest)):
            name = f"{prefix}{slash}{absolute_path(rest)}"
        root = None if self.root is None else absolute_path(self.root)
        class_map = self.class_map if self.class_map in (None, NUMERIC) else absolute_path(self.class_map)
        return replace(self, name=name, root=root, class_map=class_map)

    def paths(self) -> list[str]:
        """Files and folders that timm reads, as far as they are told."""
        if self.prefix in ("torch", "tfds"):
            return [] if self.root is None else [self.root]
        # What Hugging Face's readers call root is their cache.
        return [self.root if self.prefix == "wds" and self.root is not None else self.name.partition("/")[2]]

    @property
    def fetches(self) -> bool:
        """Whether opening it may read from the network: it names an address or a hub, or may be downloaded."""
        rest = self.name.partition("/")[2]
        hub = self.prefix in ("hfds", "hfids", "tfds") and not os.path.exists(absolute_path(rest))
        return self.download or hub or any(SCHEME.match(place) for place in self._places())

    def _places(self) -> list[str]:
        """What a reader would open: files, folders, addresses."""
        if self.prefix is None:
            return []
        return [place for place in (self.name.partition("/")[2], self.root) if place is not None]

    def _check_places(self) -> None:
        """Refuses all but files of this machine and, for shards, what can be fetched from the web.

        Raises:
            ValueError: If a place is anything else, such as a command whose output WebDataset would read.
        """
        for place in self._places():
            if SCHEME.match(place) and not (self.prefix == "wds" and ADDRESS.fullmatch(place)):
                raise ValueError(
                    f"dataset={self.name!r} would read from {place!r}; allowed are paths and, for wds/..., addresses "
                    "that begin with http:// or https://. Nothing is run, and nothing else is opened: fetch the files, "
                    "and pass their folder."
                )

    def of_folder(self) -> DatasetConfig:
        """The same as a folder in ImageNet's layout, if it is one by another name."""
        if self.root is not None and self.name.lower() in ("torch/folder", "torch/image_folder"):
            return replace(self, name=self.root, root=None, download=False)
        return self

    def takes(self, registered: list[str]) -> tuple[str, ...]:
        """Which fields beside the name have a meaning for it; of registered data sets none has."""
        if self.prefix:
            return TIMM_READERS[self.prefix][2]
        return () if self.name in registered else FOLDER_FIELDS

    def check(self, registered: list[str]) -> None:
        """Checks all that can be checked without opening the data set.

        Args:
            registered: Names of registered data sets.

        Raises:
            ValueError: If there is no such data set, or a field has no meaning for it.
            ModuleNotFoundError: If the reader's package is missing; the message says what to install.
        """
        allowed = self.takes(registered)
        self._check_places()
        if self.prefix:
            package, install, _ = TIMM_READERS[self.prefix]
            if find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"dataset={self.name!r} needs the package {package!r}; run: pip install {install}", name=package
                )
        elif self.name not in registered and not Path(self.name).expanduser().is_dir():
            raise ValueError(
                f"dataset={self.name!r} is unknown: no folder has this path. Available are "
                f"{', '.join(map(repr, registered))} (add yours with prance_env.register_dataset, in every process "
                f"that uses it), a folder in ImageNet's layout, and timm's names "
                f"{', '.join(p + '/...' for p in TIMM_READERS)}."
            )
        given = [f.name for f in fields(self) if f.name != "name" and getattr(self, f.name) != f.default]
        if excess := [name for name in given if name not in allowed]:
            raise ValueError(f"dataset={self.name!r} has no use for {excess}; what it takes is {list(allowed)}.")

    def read_class_map(self) -> dict[str, int] | None:
        """Class name to label as the file says, or None if there is no file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is empty or names a class twice.
        """
        if self.class_map in (None, NUMERIC):
            return None
        path = Path(self.class_map).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"class_map={self.class_map!r} is no file; pass a text file, one class per line.")
        names = read_text(path, "save it as UTF-8, one class a line").split("\n")
        names = [name.strip() for name in names if name.strip()]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"class_map={self.class_map!r} must name at least one class, and none of them twice.")
        return {name: label for label, name in enumerate(names)}
