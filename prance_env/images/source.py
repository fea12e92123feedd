"""What an environment shows its agents: labelled images by number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from supernet import SupernetConfig
from supernet.arrays import Ints


@runtime_checkable
class ImageSource(Protocol):
    """Labelled images by number.

    Attributes:
        labels: (N,) int64.
        difficulty: (N,) int64, a stratum to break results down by; all the same where nobody knows one.
        difficulty_name: What `difficulty` counts.
        image_shape: (C, H, W) of every image.
        lookahead: How many images `prefetch` takes at once; 0 where it does nothing.
    """

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    @property
    def difficulty(self) -> Tensor:
        """(N,) int64."""

    @property
    def difficulty_name(self) -> str:
        """What `difficulty` counts."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image."""

    @property
    def lookahead(self) -> int:
        """How many images `prefetch` takes at once."""

    def __len__(self) -> int:
        """Number of images."""

    def identity(self) -> str:
        """Differs whenever any image differs; part of the key of caches on disk."""

    def fetch(self, indices: Ints) -> Tensor:
        """(B, C, H, W) uint8."""

    def shown(self, indices: Ints) -> Ints:
        """(B,) images that `fetch` shows for these: themselves, or what was found to stand in for broken ones."""

    def prefetch(self, indices: Ints) -> None:
        """Says that these images will be fetched soon."""


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images in memory, or in a file that is mapped into it; an `ImageSource`.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        difficulty: (N,) int64, a stratum to break results down by.
        difficulty_name: What `difficulty` counts.
        name: What tells these images from others, if that is known; None: a digest of them.
        class_names: What the classes are called, by label, where that is known.
    """

    images: Tensor
    labels: Tensor
    difficulty: Tensor
    difficulty_name: str
    name: str | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        labels: Tensor,
        difficulty: Tensor | None = None,
        difficulty_name: str = "stratum",
        name: str | None = None,
    ) -> ImageDataset:
        """Checks and wraps tensors.

        Args:
            images: (N, C, H, W) uint8, of the size that the supernet takes.
            labels: (N,) whole numbers.
            difficulty: (N,) whole numbers; None puts all images into one stratum.
            difficulty_name: What they count.
            name: See the attribute.

        Raises:
            TypeError: If one is no tensor.
            ValueError: If a shape or type is another one.
        """
        given: dict[str, Any] = {"images": images, "labels": labels}
        given |= {} if difficulty is None else {"difficulty": difficulty}
        for what, value in given.items():
            if isinstance(value, np.ndarray):
                raise TypeError(f"{what} is a numpy.ndarray; pass torch.from_numpy({what}).")
            if not isinstance(value, Tensor):
                raise TypeError(f"{what} is a {type(value).__name__}; pass a torch.Tensor.")
        if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
            raise ValueError(
                f"images are {images.dtype} of the shape {tuple(images.shape)}; expected uint8 (N, C, H, W), N >= 1. "
                "Floats in 0..1 become (255 * images).round().to(torch.uint8)."
            )
        difficulty = torch.zeros_like(labels, dtype=torch.int64) if difficulty is None else difficulty
        for what, values in (("labels", labels), ("difficulty", difficulty)):
            if tuple(values.shape) != (len(images),) or values.is_floating_point() or values.is_complex():
                raise ValueError(
                    f"{what} are {values.dtype} of the shape {tuple(values.shape)}; expected whole numbers of the "
                    f"shape ({len(images)},), one per image."
                )
        return cls(images, labels.to(torch.int64), difficulty.to(torch.int64), difficulty_name, name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image."""
        return tuple(self.images.shape[1:])

    def identity(self) -> str:
        """`name`, or a digest of images and labels."""
        if self.name is not None:
            return self.name
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def lookahead(self) -> int:
        """0: there is nothing to prefetch."""
        return 0

    def fetch(self, indices: Ints) -> Tensor:
        """(B, C, H, W) uint8, a copy."""
        return self.images[torch.from_numpy(indices)]

    def shown(self, indices: Ints) -> Ints:
        """The same ones."""
        return indices

    def prefetch(self, indices: Ints) -> None:
        """Does nothing."""


def check_fits(source: ImageSource, config: SupernetConfig) -> None:
    """Checks a source against a supernet.

    Raises:
        ValueError: If it is empty, or images have another size, or labels are missing, no whole numbers or too large.
    """
    expected = (config.in_chans, config.img_size, config.img_size)
    if tuple(source.image_shape) != expected:
        raise ValueError(f"The images are {tuple(source.image_shape)}, but the supernet takes {expected}.")
    if not len(source):
        raise ValueError("The data set holds no images; check its folder and its split.")
    labels = source.labels
    if labels.is_floating_point():
        raise ValueError(f"The labels are {labels.dtype}; expected whole numbers, 0 to {config.num_classes - 1}.")
    if int(labels.min()) < 0:
        raise ValueError(f"Image {int(labels.argmin())} has no label ({int(labels.min())}); take another split.")
    if int(labels.max()) >= config.num_classes:
        raise ValueError(
            f"The labels go up to {int(labels.max())}, but the supernet has num_classes={config.num_classes}; "
            "take a supernet with enough classes, or map the classes with dataset={'name': ..., 'class_map': FILE}."
        )
