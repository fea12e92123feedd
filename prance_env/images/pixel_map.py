"""Streams of images, decoded once into a file that is then mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL
import torch
from annotated_types import Ge
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from supernet.arrays import Ints
from supernet.files import write_atomically, write_text
from supernet.reading import STRICT, read_json

from .decoded import CHUNK, SKIP, decode
from .opening import open_image
from .source import ImageDataset
from .transform import ImageTransform, Pixels
from .workers import DecodingPool

FORMAT = 2


@dataclass(frozen=True)
class StreamItem:
    """One labelled image of a stream.

    Attributes:
        name: Where it comes from.
        image: The bytes of a file, or an opened image.
        label: Its class.
    """

    name: str
    image: bytes | Image.Image
    label: int


@dataclass(frozen=True)
class DecodeItems:
    """Work of the workers: pixels of each item, or what is wrong with it."""

    transform: ImageTransform

    def __call__(self, items: list[StreamItem]) -> list[Pixels | str]:
        return [self._one(item) for item in items]

    def _one(self, item: StreamItem) -> Pixels | str:
        try:
            image = open_image(BytesIO(item.image)) if isinstance(item.image, bytes) else item.image
            return decode(image, self.transform)
        except Exception as e:  # Pillow's decoders raise whatever a damaged file makes them stumble over.
            return f"{type(e).__name__}: {e}"


@dataclass(frozen=True)
class Header:
    """What `header.json` says: that the other files are complete, and what they are."""

    __pydantic_config__ = STRICT

    count: Annotated[int, Ge(1)]
    shape: list[int]
    sha256: str


class BrokenImage(OSError):
    """An image of a stream that cannot be decoded."""


def default_cache_dir() -> Path:
    """`prance_env` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prance_env"


def pixel_map(
    stream: Callable[[], Iterator[StreamItem]],
    transform: ImageTransform,
    identity: str,
    cache_dir: Path,
    num_workers: int,
    on_error: str,
    least: int = 0,
) -> ImageDataset:
    """The images of a stream, decoded now unless an earlier call has done so.

    Several processes may call this at once; one decodes, the others wait for it. A killed one leaves nothing that a
    later one would take for complete. Where nothing can be written, the images are kept in memory, with a warning.

    Args:
        stream: Begins the stream.
        transform: Brings images to size.
        identity: What tells this stream from others.
        cache_dir: Created if missing; the files are in a folder of it.
        num_workers: Processes that decode.
        on_error: "raise", or "skip": broken images are left out, with a warning each.
        least: How many images the stream says that it holds.

    Raises:
        OSError: If an image is broken and `on_error` is "raise", or the stream cannot be read.
        ValueError: If the stream is empty, or holds fewer images than it says.
    """
    shape = (transform.in_chans, transform.img_size, transform.img_size)
    what = f"{FORMAT} {identity} {transform} {PIL.__version__} {on_error} {least}"
    key = hashlib.sha256(os.fsencode(what)).hexdigest()[:32]
    folder = cache_dir.expanduser() / f"images-{key}"

    def decoded() -> Iterator[tuple[Pixels, int]]:
        empty = True
        with tqdm(desc=f"decoding into {folder}", unit="image") as bar:
            for item in _decoded(_counted(stream(), least), transform, num_workers, on_error):
                yield item
                bar.update()
                empty = False
        if empty:
            raise ValueError(f"The stream holds no image that can be decoded: {identity}.")

    try:
        count = _write(folder, shape, decoded)
    except BrokenImage:
        raise
    except OSError as e:
        warnings.warn(f"{folder} cannot be written ({e}); the images are kept in memory.", stacklevel=2)
        images, classes = zip(*decoded(), strict=True)
        labels = torch.tensor(classes, device="cpu")
        return ImageDataset.from_tensors(torch.from_numpy(np.stack(images)), labels, name=key)
    # Private to this process, so that a stray write to the tensor cannot reach the file.
    pixels = np.memmap(folder / "pixels", np.uint8, "c", shape=(count, *shape))
    labels = torch.from_numpy(np.fromfile(folder / "labels", dtype=np.int64))
    none = torch.zeros_like(labels)
    sums = np.fromfile(folder / "checksums", dtype=np.uint32)
    return MappedDataset(torch.from_numpy(pixels), labels, none, "stratum", key, checksums=sums, folder=folder)


@dataclass(frozen=True)
class MappedDataset(ImageDataset):
    """Images in a file, each of which is compared with its checksum when it is fetched.

    Attributes:
        checksums: (N,) uint32, CRC-32 of the pixels of every image.
        folder: Where the file is.
    """

    checksums: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    folder: Path = Path()

    def fetch(self, indices: Ints) -> Tensor:
        """(B, C, H, W) uint8, a copy.

        Raises:
            OSError: If the file has been damaged.
        """
        images = super().fetch(indices)
        for index, image in zip(indices.tolist(), images.numpy(), strict=True):
            if zlib.crc32(image) != self.checksums[index]:
                raise OSError(f"{self.folder} is damaged at image {index}; delete the folder, and it is made again.")
        return images


def _write(folder: Path, shape: tuple[int, ...], decoded: Callable[[], Iterator[tuple[Pixels, int]]]) -> int:
    """Writes the files of a folder, unless they are there; returns the number of images."""
    if not os.access(folder, os.W_OK) and (count := _complete(folder, shape)) is not None:
        return count
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if (count := _complete(folder, shape)) is not None:
            return count
        for leftover in folder.glob(".*"):
            leftover.unlink()
        labels: list[int] = []
        sums: list[int] = []

        def write_pixels(name: str) -> None:
            with open(name, "wb") as file:
                for pixels, label in decoded():
                    file.write(pixels.tobytes())
                    labels.append(label)
                    sums.append(zlib.crc32(pixels.tobytes()))

        write_atomically(folder / "pixels", write_pixels)
        of_labels, of_sums = np.array(labels, dtype=np.int64).tobytes(), np.array(sums, dtype=np.uint32).tobytes()
        write_atomically(folder / "labels", lambda name: Path(name).write_bytes(of_labels))
        write_atomically(folder / "checksums", lambda name: Path(name).write_bytes(of_sums))
        # Last, because it says that the others are complete.
        header = Header(len(labels), [*shape], hashlib.sha256(of_labels + of_sums).hexdigest())
        write_text(folder / "header.json", json.dumps(asdict(header)) + "\n")
        return len(labels)


def _counted(items: Iterator[StreamItem], least: int) -> Iterator[StreamItem]:
    """The items of a stream, which has to hold so many."""
    count = 0
    for item in items:
        count += 1
        yield item
    if count < least:
        raise ValueError(
            f"The stream holds {count} images, but says that it holds {least}: files are missing or cut off. Fetch "
            "them again, or correct the number (num_samples, or _info.json beside shards)."
        )


def _complete(folder: Path, shape: tuple[int, ...]) -> int | None:
    """Number of images, or None if the files are missing, incomplete or damaged."""
    try:
        header = read_json(folder / "header.json", Header, "delete the folder")
        small = (folder / "labels").read_bytes() + (folder / "checksums").read_bytes()
        size = (folder / "pixels").stat().st_size
    except FileNotFoundError:
        return None
    except ValueError:
        header, small, size = Header(count=1, shape=[], sha256=""), b"", 0
    whole = header.shape == list(shape) and size == header.count * int(np.prod(shape))
    if whole and header.sha256 == hashlib.sha256(small).hexdigest():
        return header.count
    warnings.warn(f"{folder} is damaged and is made again.", stacklevel=3)
    return None


def _decoded(
    items: Iterator[StreamItem], transform: ImageTransform, num_workers: int, on_error: str
) -> Iterator[tuple[Pixels, int]]:
    """In the order of the stream, with a few chunks in the hands of the workers."""
    pool: DecodingPool[list[StreamItem], list[Pixels | str]] = DecodingPool(DecodeItems(transform), num_workers)
    pending: deque[tuple[list[StreamItem], Future[list[Pixels | str]]]] = deque()
    while True:
        if part := list(islice(items, CHUNK)):
            pending.append((part, pool.submit(part)))
        if not pending:
            return
        if part and len(pending) <= 2 * num_workers:
            continue
        done, future = pending.popleft()
        for item, result in zip(done, pool.result(future), strict=True):
            if not isinstance(result, str):
                yield result, item.label
            elif on_error == "raise":
                raise BrokenImage(f"{item.name} cannot be decoded: {result}. Repair or remove it, or {SKIP}.")
            else:
                warnings.warn(f"{item.name} cannot be decoded: {result}; it is left out.", stacklevel=2)
