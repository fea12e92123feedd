"""Pictures of any kind and size as the uint8 images that a network takes, and the names of what they may show."""

from __future__ import annotations

import io
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prance_env.images.config import NUMERIC, DatasetConfig
from prance_env.images.loading import list_datasets
from prance_env.images.opening import open_image
from prance_env.images.transform import ImageTransform
from supernet import SupernetConfig

Picture = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor
SINGLE = (str, Path, bytes, Image.Image, np.ndarray, Tensor)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture before the network, as in the evaluation of the data set that an agent was trained on.

    Attributes:
        crop_pct: As of `DatasetConfig`, and so the others; None: as the supernet says.
        crop_mode: See above.
        interpolation: See above.
    """

    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        DatasetConfig("any", **asdict(self))  # which checks them

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Preprocessing:
        """That of a data set; images of registered ones have the right size, so that nothing is cut off others."""
        if dataset.name in list_datasets():
            return cls(crop_pct=1.0)
        return cls(dataset.crop_pct, dataset.crop_mode, dataset.interpolation)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the arguments of this class."""
        return asdict(self)

    def __call__(self, pictures: Picture | Sequence[Picture], config: SupernetConfig) -> Tensor:
        """(B, in_chans, img_size, img_size) uint8.

        Args:
            pictures: One or several: paths; the bytes of files; Pillow's images; arrays or tensors of uint8, (H, W),
                (H, W, C) or (C, H, W).
            config: Says which size and how many channels are wanted.

        Raises:
            ValueError: If a picture cannot be read, which is named; or there are none.
            TypeError: If these are no pictures.
        """
        single = isinstance(pictures, SINGLE) and not (_is_array(pictures) and pictures.ndim == 4)  # type: ignore[union-attr]
        several: Sequence[Picture] = [pictures] if single else pictures  # type: ignore[list-item,assignment]
        transform = self.transform(config)
        if not hasattr(several, "__len__"):
            raise TypeError(
                f"pictures={reprlib.repr(pictures)} are no pictures; pass paths, bytes, Pillow's images or uint8 "
                "arrays, one or a list of them."
            )
        if not len(several):
            raise ValueError("There are no pictures; pass at least one path, image or array.")
        return torch.stack([self._one(picture, i, transform) for i, picture in enumerate(several)])

    def transform(self, config: SupernetConfig) -> ImageTransform:
        """From one of Pillow's pictures to the pixels that a supernet takes."""
        return ImageTransform.of(config, self.crop_pct, self.crop_mode, self.interpolation)

    def _one(self, picture: Picture, number: int, transform: ImageTransform) -> Tensor:
        name = str(picture) if isinstance(picture, str | Path) else f"picture {number}"
        try:
            return torch.from_numpy(np.array(transform(_opened(picture))))
        except FileNotFoundError as e:
            raise ValueError(f"{name}: there is no such file.") from e
        except Exception as e:  # Pillow's readers raise what they like
            raise ValueError(f"{name} cannot be read as a picture: {e}") from e


def check_images(images: Any) -> None:
    """Checks that a model that takes tensors was given one.

    Raises:
        TypeError: If it was not; the message says how to come by one.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images is of type {type(images).__name__}; a call of the model takes a tensor (B, C, H, W), "
            "torch.from_numpy(images), and model.predict(images) takes arrays, paths and Pillow's pictures."
        )


def _is_array(picture: Any) -> bool:
    return isinstance(picture, np.ndarray | Tensor)


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, bytes):
        return open_image(io.BytesIO(picture))
    if isinstance(picture, str | Path):
        return open_image(picture)
    if not _is_array(picture):
        raise ValueError(f"it is of type {type(picture).__name__}; expected a path, bytes, Pillow's image or an array")
    array = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"it is {array.dtype} of the shape {array.shape}; expected uint8 (H, W), (H, W, C) or (C, H, W)"
        )
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def class_names(dataset: DatasetConfig, num_classes: int, split: str = "train") -> tuple[str, ...] | None:
    """Names of the classes, by label; None where the data set does not tell all of them without being opened.

    Args:
        dataset: Says what the classes are.
        num_classes: How many the network has; another number of names is worth a warning.
        split: Whose folders count where there is no training split.
    """
    names = known_names(dataset, split)
    if not names or len(names) == num_classes:
        return names or None
    warnings.warn(
        f"{dataset.class_map or dataset.of_folder().name} has {len(names)} classes, the network {num_classes}: they "
        "are called by their numbers. Pass their names, such as AdaptiveViT.from_run(run, names=[...]).",
        stacklevel=2,
    )
    return None


def known_names(dataset: DatasetConfig, split: str = "train") -> tuple[str, ...]:
    """The names of a data set's classes, by label, as far as it tells them without being opened; see `class_names`."""
    place = dataset.of_folder()
    if place.class_map not in (None, NUMERIC) and Path(str(place.class_map)).is_file():
        # As labels are given: a line ends nowhere else.
        return tuple(place.read_class_map() or {})
    if place.class_map is None and place.name not in list_datasets() and Path(place.name).is_dir():
        from prance_env.images.folders import labelled_classes

        return tuple(labelled_classes(Path(place.name), split))
    return ()


def checked_names(names: Sequence[str] | Mapping[int, str] | None, num_classes: int) -> tuple[str, ...]:
    """Names of all classes.

    Args:
        names: By label: a sequence, or a mapping from labels, whole numbers or such as text; None: their numbers.
        num_classes: How many classes there are.

    Raises:
        ValueError: If there are not as many as classes, or a mapping lacks a label.
    """
    if names is None:
        return tuple(str(i) for i in range(num_classes))
    if len(names) != num_classes:
        raise ValueError(f"There are {len(names)} class names for {num_classes} classes; give one for each.")
    if not isinstance(names, Mapping):
        return tuple(str(name) for name in names)
    by_label, labels = {str(label): str(name) for label, name in names.items()}, [str(i) for i in range(num_classes)]
    if missing := [label for label in labels if label not in by_label]:
        raise ValueError(
            f"names={reprlib.repr(dict(names))} has no name for the label {missing[0]}; a mapping has one for each "
            f"label from 0 to {num_classes - 1}, such as {{0: 'cat', 1: 'dog'}}."
        )
    return tuple(by_label[label] for label in labels)
