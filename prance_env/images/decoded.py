"""Images that are decoded when they are needed, or a little earlier, by worker processes."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from supernet.arrays import Ints
from supernet.forked_lock import ForkedLock

from .transform import ImageTransform, Pixels
from .workers import DecodingPool

# Images per task of a worker, and how many images may be decoded before anybody has asked for them.
CHUNK, LOOKAHEAD = 16, 512
# Environments have the argument, and commands that make one the option.
SKIP = "pass on_error='skip' (--on-error skip, if the command has it)"


class Samples(Protocol):
    """Image files by number; picklable."""

    def __len__(self) -> int:
        """How many."""

    def open(self, index: int) -> Image.Image:
        """Opens one; may raise anything if it is broken."""

    def name(self, index: int) -> str:
        """Its path, or what comes nearest."""

    def identity(self) -> str:
        """What tells these files from others."""


@dataclass(frozen=True)
class Decode:
    """Work of the workers: image numbers to pixels, or to what is wrong with the file."""

    samples: Samples
    transform: ImageTransform

    def __call__(self, indices: list[int]) -> list[Pixels | str]:
        return [self._one(i) for i in indices]

    def _one(self, index: int) -> Pixels | str:
        try:
            return decode(self.samples.open(index), self.transform)
        except Exception as e:  # Pillow's decoders raise whatever a damaged file makes them stumble over.
            return f"{type(e).__name__}: {e}"


def decode(image: Image.Image, transform: ImageTransform) -> Pixels:
    """Pixels of an opened image, which is closed."""
    with image:
        return transform(image)


class DecodedSource:
    """An `ImageSource` over image files; threads may share it.

    Args:
        samples: The files.
        labels: (N,) int64.
        transform: Brings them to size.
        num_workers: Processes that decode; 0 decodes in this one when an image is needed.
        on_error: "raise", or "skip": a broken image is replaced by the next good one, with one warning.
        class_names: What the classes are called, by label, where that is known; for pictures.
    """

    difficulty_name = "stratum"

    def __init__(
        self,
        samples: Samples,
        labels: Tensor,
        transform: ImageTransform,
        num_workers: int,
        on_error: str,
        class_names: Mapping[int, str] | None = None,
    ) -> None:
        self.class_names = dict(class_names or {})
        self.samples, self.labels, self.transform, self.on_error = samples, labels, transform, on_error
        self.difficulty = torch.zeros_like(labels)
        self.image_shape = (transform.in_chans, transform.img_size, transform.img_size)
        self.lookahead = LOOKAHEAD if num_workers else 0
        self._work = Decode(samples, transform)
        self._pool: DecodingPool[list[int], list[Pixels | str]] = DecodingPool(self._work, num_workers)
        self._pending: OrderedDict[int, tuple[Future[list[Pixels | str]], int]] = OrderedDict()
        self._stand_in: dict[int, int] = {}
        # Around what is written down of images, not around decoding them.
        self._lock = ForkedLock()

    def identity(self) -> str:
        """What tells these images from others: files, transform and decoder."""
        return f"{self.samples.identity()} {self.transform} Pillow {PIL.__version__}"

    def image_name(self, index: int) -> str:
        """The path of an image, or what comes nearest."""
        return self.samples.name(index)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pending": OrderedDict()}

    def prefetch(self, indices: Ints) -> None:
        """Has images decoded in the background; of those that nobody fetches, only the last `lookahead` are kept."""
        with self._lock.here:
            self._submit(self.shown(indices[: self.lookahead]).tolist())
            while len(self._pending) > self.lookahead:
                self._pending.popitem(last=False)

    def end_workers(self) -> None:
        """Ends the processes that decode; they are started again where they are needed."""
        with self._lock.here:
            self._pending.clear()
            self._pool.end()

    def fetch(self, indices: Ints) -> Tensor:
        """(B, C, H, W) uint8.

        Raises:
            OSError: If an image is broken and `on_error` is "raise", or if none of them can be decoded.
            RuntimeError: If a worker has died.
        """
        wanted = self.shown(indices)
        pixels: dict[int, Pixels] = {}
        missing = sorted(set(wanted.tolist()))
        while missing:
            decoded = dict(zip(missing, self._decode(missing), strict=True))
            for index, result in decoded.items():
                if isinstance(result, str):
                    self.replace(index, result)
                else:
                    pixels[index] = result
            wanted = self.shown(indices)
            missing = sorted(set(wanted.tolist()) - set(pixels))
        return torch.from_numpy(np.stack([pixels[i] for i in wanted.tolist()]))

    def shown(self, indices: Ints) -> Ints:
        """What `fetch` shows for these images: themselves, or what was found to stand in for broken ones."""
        return np.array([self._follow(i) for i in indices.tolist()], dtype=np.int64) if self._stand_in else indices

    def _follow(self, index: int) -> int:
        while index in self._stand_in:
            index = self._stand_in[index]
        return index

    def replace(self, index: int, problem: str) -> None:
        """Has the next image stand in for a broken one from now on, which `shown` says; with one warning.

        Args:
            index: The broken one.
            problem: What is wrong with it.

        Raises:
            OSError: If `on_error` is "raise", or no other image is left.
        """
        message = f"{self.samples.name(index)} (image {index}) cannot be decoded: {problem}"
        if self.on_error == "raise":
            raise OSError(f"{message}. Repair or remove it, or {SKIP}.")
        with self._lock.here:
            if index in self._stand_in:
                return  # another thread has said so
            if len(self._stand_in) == len(self) - 1:
                raise OSError(f"{message}. Nor can any other image of this data set; look at its files.")
            self._stand_in[index] = (index + 1) % len(self)
        warnings.warn(f"{message}; the next good image is shown in its place.", stacklevel=2)

    def _decode(self, indices: list[int]) -> list[Pixels | str]:
        """Distinct images, what has been begun first of all."""
        with self._lock.here:
            self._forget_if_forked()
            fresh = [i for i in indices if i not in self._pending]
            # A few are sooner done here than sent to a worker.
            here = len(fresh) <= CHUNK or not self._pool.num_workers
            if not here:
                self._submit(fresh)
            awaited = {i: self._pending.pop(i) for i in indices if i in self._pending}
        pixels = dict(zip(fresh, self._work(fresh), strict=True)) if here else {}
        return [pixels[i] if i in pixels else self._await(*awaited[i]) for i in indices]

    def _await(self, future: Future[list[Pixels | str]], place: int) -> Pixels | str:
        try:
            return self._pool.result(future)[place]
        except RuntimeError:
            with self._lock.here:
                self._pending.clear()
            raise

    def _submit(self, indices: list[int]) -> None:
        self._forget_if_forked()
        fresh = []
        for index in dict.fromkeys(indices):
            if index in self._pending:
                self._pending.move_to_end(index)
            else:
                fresh.append(index)
        for begin in range(0, len(fresh), CHUNK):
            part = fresh[begin : begin + CHUNK]
            future = self._pool.submit(part)
            for place, index in enumerate(part):
                self._pending[index] = future, place

    def _forget_if_forked(self) -> None:
        if self._pool.belongs_to_parent:
            self._pending.clear()
