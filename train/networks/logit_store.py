"""A teacher's answers in a file: for every image and epoch the seed of a view and the most probable classes.

TinyViT's fast distillation (arXiv 2207.10666): the teacher runs once, and any number of trainings read what it said.
A store is a folder with `store.json`, `progress.json` and one `epoch_XXXX.bin` for each epoch, records of fixed size in
the order of the images: seed (4 bytes), K classes (2 bytes each; 4 where there are more than 65,536 classes), their
probabilities (float16), and a CRC-32 (4 bytes; earlier versions wrote none) over these, the record's place and
`store.json`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypedDict

from supernet.arrays import Ints
from supernet.files import flush, write_text
from supernet.reading import STRICT, read_json

from ..runs.folder import STORE
from ..runs.progress import PROGRESS

DESCRIPTION = STORE
REMEDY = "write the store anew"
FORMAT: Literal[1] = 1
CRC = np.dtype("<u4")
Count = Annotated[int, Interval(ge=1, le=2**40)]


class _Done(TypedDict):
    """What `progress.json` says."""

    records: Annotated[int, Ge(0)]


_Done.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        num_images: Images of the data set, in whose order records stand.
        num_classes: Classes of the teacher.
        top_k: Classes that a record lists.
        epochs: Views of every image.
        images: Identity of the images, so that a store is not read with others.
        view: Fields of `train.networks.views.View`.
        teacher: What the teacher was, in words.
        seed: From which the seeds of the views are drawn; None: not noted, by earlier versions.
        labels: Digest of the images' labels, in whose order the classes are; None: not noted, by earlier versions.
        format: Version of the files.
        checksums: Whether records end with one; those of earlier versions do not.
    """

    num_images: Count
    num_classes: Count
    top_k: Count
    epochs: Count
    images: str
    view: Mapping[str, Any]
    teacher: str
    seed: int | None = None
    format: Literal[1] = FORMAT
    checksums: bool = False
    labels: str | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        # As JSON gives it back, so that both compare equal.
        object.__setattr__(self, "view", json.loads(json.dumps(dict(self.view))))
        if not 1 <= self.top_k <= self.num_classes or min(self.num_images, self.epochs) < 1:
            raise ValueError(
                f"top_k={self.top_k} must lie in 1..{self.num_classes}, the teacher's classes, and there must be "
                f"images ({self.num_images}) and epochs ({self.epochs})."
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one record."""
        classes = "<u2" if self.num_classes <= 1 << 16 else "<u4"
        parts: list[Any] = [("seed", "<u4"), ("classes", classes, (self.top_k,)), ("probs", "<f2", (self.top_k,))]
        return np.dtype([*parts, ("crc", CRC)] if self.checksums else parts)

    @property
    def num_bytes(self) -> int:
        """Size of all records."""
        return self.num_images * self.epochs * self.dtype.itemsize

    @property
    def salt(self) -> int:
        """Where checksums begin, so that records of another store, or a damaged `store.json`, are noticed."""
        # Fields by name: one that a later version adds must not change the salt of stores that are there.
        shape = (self.num_images, self.num_classes, self.top_k, self.epochs)
        return zlib.crc32(
            json.dumps([*shape, self.images, self.view, self.teacher, self.seed], sort_keys=True).encode()
        )


class LogitStore:
    """A store that is there, or that is being written.

    Args:
        folder: Holds the files.
        info: What `store.json` says.
    """

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        self.folder, self.info = folder, info
        self._salt = info.salt
        self._maps: dict[int, NDArray[Any]] = {}

    @classmethod
    def create(cls, folder: Path, info: StoreInfo) -> LogitStore:
        """An empty store with checksums, or the same one that was begun before, with them or without.

        Raises:
            ValueError: If the folder holds another store.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / DESCRIPTION).exists():
            store = cls._opened(folder)
            old: dict[str, Any] = {name: None for name in ("seed", "labels") if getattr(store.info, name) is None}
            info = replace(info, checksums=store.info.checksums, **old)
            if store.info != info:
                now, then = asdict(info), asdict(store.info)
                changed = [k for k in now if now[k] != then[k]]
                raise ValueError(f"{folder} was begun with other values of {changed}; pass the same, or another --out.")
            return store
        info = replace(info, checksums=True)
        write_text(folder / DESCRIPTION, json.dumps(asdict(info), indent=2) + "\n")
        return cls(folder, info)

    @classmethod
    def open(cls, folder: Path) -> LogitStore:
        """A complete store.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged or not complete.
        """
        if not (folder / DESCRIPTION).is_file():
            raise FileNotFoundError(f"{folder} is no store of logits: it holds no {DESCRIPTION}; run prance distill.")
        store = cls._opened(folder)
        done, wanted = store.done, store.info.num_images * store.info.epochs
        if done < wanted:
            raise ValueError(f"{folder} holds {done} of {wanted} records; finish it with prance distill --resume.")
        for epoch in range(store.info.epochs):
            store._records(epoch, "r")
        return store

    @classmethod
    def _opened(cls, folder: Path) -> LogitStore:
        return cls(folder, cls.described(folder))

    @staticmethod
    def described(folder: Path) -> StoreInfo:
        """What `store.json` says.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged.
        """
        return read_json(folder / DESCRIPTION, StoreInfo, REMEDY)

    @property
    def done(self) -> int:
        """Records that are written, epoch after epoch."""
        path = self.folder / PROGRESS
        return int(read_json(path, _Done, REMEDY)["records"]) if path.is_file() else 0

    def write(self, first: int, seeds: Ints, probabilities: Tensor) -> None:
        """Appends records of one epoch; they count when they are on the disk.

        Args:
            first: Number of the first record, counted over all epochs; `done`.
            seeds: (B,) of the views.
            probabilities: (B, num_classes) of the teacher.
        """
        epoch, start = divmod(first, self.info.num_images)
        records = np.zeros(len(seeds), self.info.dtype)
        top = probabilities.float().topk(self.info.top_k, dim=1)
        records["seed"] = seeds
        records["classes"] = top.indices.cpu().numpy()
        records["probs"] = top.values.cpu().numpy()
        if self.info.checksums:
            records["crc"] = self._checksums(epoch, np.arange(start, start + len(seeds)), records)
        whole = self._records(epoch, "r+")
        assert isinstance(whole, np.memmap)
        whole[start : start + len(seeds)] = records
        whole.flush()
        flush(self._path(epoch))
        write_text(self.folder / PROGRESS, json.dumps({"records": first + len(seeds)}) + "\n")

    def seeds(self, epoch: int, indices: Ints) -> Ints:
        """(B,) seeds of the views of some images; epochs after the last begin anew.

        Raises:
            ValueError: If a record is damaged.
        """
        return self._read(epoch, indices)["seed"].astype(np.int64)

    def targets(self, epoch: int, indices: Ints) -> Tensor:
        """(B, num_classes) float32 probabilities; what the listed classes leave is shared by the others.

        Raises:
            ValueError: If a record is damaged.
        """
        records = self._read(epoch, indices)
        return dense(
            torch.from_numpy(records["classes"].astype(np.int64)),
            torch.from_numpy(records["probs"].astype(np.float32)),
            self.info.num_classes,
        )

    def _read(self, epoch: int, indices: Ints) -> NDArray[Any]:
        epoch, images = int(epoch) % self.info.epochs, indices % self.info.num_images
        found: NDArray[Any] = self._records(epoch, "r")[indices]
        if self.info.checksums:
            sound = found["crc"] == self._checksums(epoch, images, found)
        else:  # what no teacher says is all that can be noticed
            sound = (found["classes"] < self.info.num_classes).all(1) & np.isfinite(found["probs"]).all(1)
        if not sound.all():
            first = images[~sound][0]
            raise ValueError(
                f"{self._path(epoch)} is damaged at image {first}; {REMEDY}, with prance distill and another --out."
            )
        return found

    def _checksums(self, epoch: int, images: Ints, records: NDArray[Any]) -> NDArray[np.uint32]:
        """(B,) over where a record stands, so that one of another image or epoch is noticed, and what it says."""
        salt = zlib.crc32(epoch.to_bytes(8, "little"), self._salt)
        data, size = records.tobytes(), records.dtype.itemsize
        return np.array(
            [
                zlib.crc32(data[at : at + size - CRC.itemsize], zlib.crc32(image.to_bytes(8, "little"), salt))
                for image, at in zip(images.tolist(), range(0, len(data), size), strict=True)
            ],
            np.uint32,
        )

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:04d}.bin"

    def _records(self, epoch: int, mode: str) -> NDArray[Any]:
        if epoch not in self._maps:
            path, shape, size = self._path(epoch), (self.info.num_images,), self.info.dtype.itemsize
            if mode == "r+" and self.done <= epoch * self.info.num_images:
                mode = "w+"  # nothing in it counts yet: it is missing, or not whole for want of room
            elif not path.is_file() or path.stat().st_size != shape[0] * size:
                raise ValueError(f"{path} is missing or not {shape[0] * size} bytes long; write the store anew.")
            self._maps[epoch] = np.memmap(path, self.info.dtype, mode, shape=shape)  # type: ignore[call-overload]
        return self._maps[epoch]


def dense(classes: Tensor, probabilities: Tensor, num_classes: int) -> Tensor:
    """(B, num_classes) distributions out of (B, K) classes and probabilities; the rest is shared evenly by the others.

    Rounding of float16 can push a sum over 1: then it is divided by it.
    """
    batch, k = classes.shape
    listed = probabilities.sum(1, keepdim=True)
    probabilities = probabilities / listed.clamp_min(1.0) if k < num_classes else probabilities / listed
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp_min(0) / max(num_classes - k, 1)
    return rest.expand(batch, num_classes).scatter(1, classes, probabilities)
