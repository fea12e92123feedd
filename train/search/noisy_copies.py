"""The same images with other noise: what a choice is tried on that must not profit from chance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prance_env.images.digits import make_scenes
from prance_env.images.loading import DIGITS_SCENES
from prance_env.images.source import ImageDataset, ImageSource
from prance_env.settings import EnvSettings

# As much as the scenes of Digits have.
NOISE_STD = 0.1


@dataclass(frozen=True)
class NoisyCopy:
    """An image source with normal noise on every pixel; an `ImageSource`.

    Attributes:
        source: The images.
        seed: Of the noise; an image has the same noise whenever it is fetched.
        std: Standard deviation, in fractions of the range of a pixel.
    """

    source: ImageSource
    seed: int
    std: float = NOISE_STD

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self.source.labels

    @property
    def difficulty(self) -> Tensor:
        """(N,) int64."""
        return self.source.difficulty

    @property
    def difficulty_name(self) -> str:
        """What `difficulty` counts."""
        return self.source.difficulty_name

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image."""
        return self.source.image_shape

    @property
    def lookahead(self) -> int:
        """That of the source."""
        return self.source.lookahead

    def __len__(self) -> int:
        return len(self.source)

    def identity(self) -> str:
        """A digest of the source's and of the noise."""
        return hashlib.sha256(f"{self.source.identity()} {self.seed} {self.std}".encode()).hexdigest()

    def fetch(self, indices: NDArray[np.int64]) -> Tensor:
        """(B, C, H, W) uint8."""
        images = self.source.fetch(indices).float()
        noise = [np.random.default_rng([self.seed, i]).standard_normal(self.image_shape, np.float32) for i in indices]
        return (images + 255 * self.std * torch.from_numpy(np.stack(noise))).round().clamp(0, 255).to(torch.uint8)

    def shown(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the source says."""
        return self.source.shown(indices)

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Passed on to the source."""
        self.source.prefetch(indices)


def noisy_copy(settings: EnvSettings, seed: int) -> ImageSource:
    """The images of an environment with other noise.

    The scenes of Digits are drawn again, the same digits in the same places, so that a copy is as hard as the image.
    Other images get noise in addition to what they have, which makes them harder.

    Args:
        settings: What the environment is made with.
        seed: Of the noise, not negative.
    """
    split = settings.split
    if settings.dataset_config.name != "digits":
        return NoisyCopy(settings.engine().dataset, seed)
    scenes = make_scenes(DIGITS_SCENES[split], split, seed=0, noise_seed=seed)
    return ImageDataset(scenes.images, scenes.labels, scenes.num_digits, "num_digits")
