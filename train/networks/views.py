"""Augmented views of training images, each a function of the image and one number.

A view is drawn with timm's own functions while all generators of random numbers stand at the view's seed. Whoever knows
the seed gets the same pixels again, in any process: stored logits of a teacher belong to the views that it saw.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from prance_env.images.decoded import DecodedSource
from prance_env.images.source import ImageSource
from prance_env.images.transform import Pixels, upright
from prance_env.images.workers import DecodingPool
from supernet.arrays import Ints
from supernet.config import INTERPOLATIONS

CHUNK = 16
NONE = "none"
Task = list[tuple[int, int]]


def checked_augment(words: str) -> str:
    """RandAugment's words, of which none and an empty text are the same.

    Raises:
        ValueError: If they are not timm's.
    """
    words = "" if words.lower() == NONE else words
    _augment(words, 224)  # any size
    return words


def _augment(words: str, img_size: int) -> Any:
    """What distorts pictures; None if nothing does."""
    if not words:
        return None
    try:
        return rand_augment_transform(words, {"translate_const": int(img_size * 0.45)})
    except (AssertionError, ValueError, KeyError) as e:
        raise ValueError(
            f"rand_augment={words!r} is not in timm's words, such as 'rand-m9-mstd0.5-inc1'; 'none': no augmentation."
        ) from e


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Sets the global generators of Python, NumPy and PyTorch's CPU, which timm draws from, and puts them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class View:
    """How a training image is cropped, flipped and distorted.

    Attributes:
        img_size: Height and width of the result in pixels.
        in_chans: 1 or 3.
        crop_scale: Smallest and largest share of the image's area that a random crop takes; (1, 1): as in evaluation.
        flip: Chance of a horizontal flip.
        rand_augment: RandAugment in timm's words, such as "rand-m9-mstd0.5-inc1"; "none" or empty: none.
        interpolation: Of random crops: one of `supernet.config.INTERPOLATIONS`, or "random", bilinear or bicubic.
    """

    img_size: int
    in_chans: int
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rand_augment: str = ""
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1 or not 0 <= self.flip <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale} must be shares of the area in (0, 1], the smaller first, and "
                f"flip={self.flip} a chance in [0, 1]."
            )
        object.__setattr__(self, "rand_augment", checked_augment(self.rand_augment))
        if self.interpolation not in (allowed := (*INTERPOLATIONS, "random")):
            raise ValueError(f"interpolation={self.interpolation!r} is unknown; choose one of {allowed}.")

    @property
    def is_plain(self) -> bool:
        """Whether nothing is random, so that images come as in evaluation."""
        return not self.crops and not self.flip and not self.rand_augment

    @property
    def crops(self) -> bool:
        """Whether crops are random."""
        return tuple(self.crop_scale) != (1, 1)

    @cached_property
    def _crop(self) -> Any:
        return RandomResizedCropAndInterpolation(self.img_size, self.crop_scale, interpolation=self.interpolation)

    @cached_property
    def _distort(self) -> Any:
        return _augment(self.rand_augment, self.img_size)

    def __call__(self, image: Image.Image, seed: int) -> Pixels:
        """(in_chans, img_size, img_size) uint8 of a picture that is upright in the right number of channels.

        Args:
            image: Of that size already if crops are not random.
            seed: Fixes what is random.
        """
        with seeded(seed):
            picture = self._crop(image) if self.crops else image
            if random.random() < self.flip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if self._distort is not None:
                picture = self._distort(picture.convert("RGB")).convert("L" if self.in_chans == 1 else "RGB")
        return np.ascontiguousarray(np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1))


@dataclass(frozen=True)
class _Draw:
    """Work of the processes: numbers of images and seeds to pixels, or to what is wrong with the file."""

    source: ImageSource
    view: View

    def __call__(self, task: Task) -> list[Pixels | str]:
        return [self._one(*pair) for pair in task]

    def _one(self, index: int, seed: int) -> Pixels | str:
        try:
            return self.view(self._picture(index), seed)
        except Exception as e:  # Pillow's decoders raise whatever a damaged file makes them stumble over.
            return f"{type(e).__name__}: {e}"

    def _picture(self, index: int) -> Image.Image:
        if isinstance(self.source, DecodedSource):
            with self.source.samples.open(index) as image:
                whole = upright(image, self.view.in_chans)
            return whole if self.view.crops else self.source.transform.picture(whole)
        # These have been brought to size already: crops are taken out of that.
        pixels = self.source.fetch(np.array([index]))[0].numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


class ViewLoader:
    """Batches of views, drawn by processes while something else goes on.

    Args:
        source: The images.
        view: How they are drawn.
        num_workers: Processes; 0 draws in this one when a batch is asked for.
    """

    def __init__(self, source: ImageSource, view: View, num_workers: int = 0) -> None:
        self.source, self.view = source, view
        self._draw = _Draw(source, view)
        self._pool: DecodingPool[Task, list[Pixels | str]] = DecodingPool(self._draw, num_workers)
        self._pending: OrderedDict[tuple[tuple[int, int], ...], list[Future[list[Pixels | str]]]] = OrderedDict()

    def prefetch(self, indices: Ints, seeds: Ints) -> None:
        """Begins a batch that `batch` will ask for."""
        if self.view.is_plain:
            self.source.prefetch(indices)
        elif self._pool.num_workers:
            self._begin(tuple(zip(indices.tolist(), seeds.tolist(), strict=True)))

    def batch(self, indices: Ints, seeds: Ints) -> Tensor:
        """(B, C, H, W) uint8 views of some images.

        Args:
            indices: (B,) which images.
            seeds: (B,) one number for each.

        Raises:
            OSError: If an image is broken, and the source lets no other one stand in for it.
        """
        if self.view.is_plain:
            return self.source.fetch(indices)
        pairs = tuple(zip(indices.tolist(), seeds.tolist(), strict=True))
        futures = self._pending.pop(pairs, None) or self._begin(pairs)
        self._pending.pop(pairs, None)
        drawn = [pixels for future in futures for pixels in self._pool.result(future)]
        return torch.from_numpy(np.stack([self._good(p, *pair) for p, pair in zip(drawn, pairs, strict=True)]))

    def _begin(self, pairs: Sequence[tuple[int, int]]) -> list[Future[list[Pixels | str]]]:
        key = tuple(pairs)
        if key not in self._pending:
            parts = [list(pairs[i : i + CHUNK]) for i in range(0, len(pairs), CHUNK)]
            self._pending[key] = [self._pool.submit(part) for part in parts]
        return self._pending[key]

    def _good(self, pixels: Pixels | str, index: int, seed: int) -> Pixels:
        """The view, or of a broken image that of what stands in for it."""
        while isinstance(pixels, str):
            if not isinstance(self.source, DecodedSource):
                raise OSError(f"image {index} cannot be decoded: {pixels}. Repair or remove it.")
            self.source.replace(index, pixels)
            index = int(self.source.shown(np.array([index]))[0])
            (pixels,) = self._draw([(index, seed)])
        return pixels


class Shuffle:
    """Which images a training step takes: every epoch all of them, in an order of its own.

    Args:
        total: How many images there are.
        batch_size: Images a step.
        seed: Fixes the orders and the seeds of the views.

    Raises:
        ValueError: If there are fewer images than a batch holds.
    """

    def __init__(self, total: int, batch_size: int, seed: int) -> None:
        if total < batch_size:
            raise ValueError(f"The data set holds {total} images, fewer than batch_size={batch_size}; lower it.")
        self.total, self.batch_size, self.seed = total, batch_size, seed
        self._orders: OrderedDict[int, Ints] = OrderedDict()

    def drawn(self, step: int) -> tuple[Ints, Ints]:
        """(batch_size,) images of a step, and (batch_size,) the epoch that each of them belongs to."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = places // self.total
        images = np.array([self._order(int(e))[p % self.total] for e, p in zip(epochs, places, strict=True)])
        return images, epochs

    def _order(self, epoch: int) -> Ints:
        if epoch not in self._orders:
            self._orders[epoch] = np.random.default_rng([self.seed, 1, epoch]).permutation(self.total)
            while len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]


@lru_cache(maxsize=2)
def view_seeds(seed: int, epoch: int, total: int) -> Ints:
    """(total,) the seed of every image's view in an epoch, below 2^31; read-only, since every batch asks for it."""
    seeds = np.random.default_rng([seed, 3, epoch]).integers(2**31, size=total)
    seeds.flags.writeable = False
    return seeds
