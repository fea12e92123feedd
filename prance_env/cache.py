"""What is kept of every image: the prefix that no action can change, and the verdict of the full network."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from supernet import Supernet
from supernet.arrays import Bools, Floats, Ints
from supernet.convert.authors import AUTHORS_MODES
from supernet.files import write_atomically
from supernet.full_size import reduces_at_full_size
from supernet.stems import OWN_STEMS

from .definitions import definition_digest
from .images.source import ImageSource

MEBIBYTE = 2**20
FORMAT = 2
HEADER_BYTES = 4096
VERDICT, PREFIX = 1, 2
# `known` is 0, VERDICT or PREFIX (both); `crc` is over the file's header, the image's number, the prefix, if there, and
# the other two.
RECORD = np.dtype([("known", "<u4"), ("crc", "<u4"), ("prediction", "<i8"), ("prob", "<f8")])


class PrefixStore(Protocol):
    """Prefixes of the first `capacity` images.

    Which images they are is fixed: images are drawn at random, so that no choice is better than another, and a prefix
    that is never replaced can be read by several processes while others are written.
    """

    capacity: int

    def read(self, index: Ints) -> Tensor:
        """(B, N + 1, C) prefixes of images that have been written."""

    def write(self, index: Ints, tokens: Tensor, prediction: Ints, prob: Floats) -> Ints:
        """Keeps the prefixes of images below `capacity`, and verdicts if they can outlive the process.

        Returns:
            The images whose prefixes can be read now.
        """

    def recall(self, index: Ints) -> tuple[Ints, Ints, Floats]:
        """What earlier or other processes have written: `known`, prediction and probability, each (B,)."""


class PrefixCache:
    """Prefixes of as many images as the budget holds, and the verdicts of all of them.

    Args:
        net: Whose prefixes.
        source: The images that the store is about.
        cache_mb: Budget for the prefixes in MiB, of memory on the device of the network or, with a folder, of disk.
        cache_dir: Folder for a cache that outlives the process; None keeps everything in memory, as does, with a
            warning, a folder that cannot be written.
        key_mean: Whether the mean key of every token is kept behind its channels.

    Attributes:
        shape: (N + 1, C) of a prefix, with C + 1 if it has mean keys.
        held: (N,) whether the prefix can be read.
        known: (N,) whether the verdict is known.
        prediction: (N,) class that the full network predicts.
        prob: (N,) probability that it gives the label.
    """

    def __init__(
        self,
        net: Supernet,
        source: ImageSource,
        cache_mb: float,
        cache_dir: str | Path | None,
        key_mean: bool = False,
    ) -> None:
        c, total = net.config, len(source)
        shape, dtype, device = (c.num_tokens, c.embed_dim + key_mean), net.pos_embed.dtype, net.pos_embed.device
        self.shape = shape
        row_bytes = shape[0] * shape[1] * dtype.itemsize
        capacity = min(total, int(cache_mb * MEBIBYTE) // row_bytes)
        store: PrefixStore | None = None
        if cache_dir is not None:
            path = Path(cache_dir).expanduser() / f"prefixes-{cache_key(net, source, key_mean)}"
            try:
                store = DiskStore(path, total, capacity, shape, dtype, device)
            except OSError as e:
                warnings.warn(f"{path} cannot be written ({e}); prefixes are kept in memory.", stacklevel=2)
        self.store: PrefixStore = store or MemoryStore(capacity, shape, dtype, device)
        self.held, self.known = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
        self.prediction: Ints = np.zeros(total, dtype=np.int64)
        self.prob: Floats = np.zeros(total)

    def recall(self, index: Ints) -> Bools:
        """(B,) whether the prefixes can be read; looks for new ones of other processes."""
        held = self.held[index]
        if not held.all():
            unseen = np.unique(index[~held & (~self.known[index] | (index < self.store.capacity))])
            known, prediction, prob = self.store.recall(unseen)
            found = unseen[known > 0]
            self.prediction[found], self.prob[found] = prediction[known > 0], prob[known > 0]
            self.known[found] = True
            self.held[unseen[known == PREFIX]] = True
            held = self.held[index]
        return held

    def read(self, index: Ints) -> Tensor:
        """(B, N + 1, C) prefixes, all of them held."""
        return self.store.read(index)

    def write(self, index: Ints, tokens: Tensor, prediction: Ints, prob: Floats) -> None:
        """Keeps what has been computed.

        Args:
            index: (B,) images.
            tokens: (B, N + 1, C) their prefixes.
            prediction: (B,) see the attribute.
            prob: (B,) probability that it gives the label.
        """
        self.prediction[index], self.prob[index] = prediction, prob
        self.known[index] = True
        self.held[self.store.write(index, tokens, prediction, prob)] = True


class MemoryStore:
    """A `PrefixStore` in the memory of a device.

    Args:
        capacity: How many prefixes.
        shape: (N + 1, C) of one.
        dtype: Type of the entries.
        device: Where they lie.
    """

    def __init__(self, capacity: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        self._rows = torch.empty(capacity, *shape, dtype=dtype, device=device)

    def read(self, index: Ints) -> Tensor:
        """See `PrefixStore`."""
        return self._rows[torch.from_numpy(index).to(self._rows.device, non_blocking=True)]

    def write(self, index: Ints, tokens: Tensor, prediction: Ints, prob: Floats) -> Ints:
        """See `PrefixStore`."""
        kept = np.flatnonzero(index < self.capacity)
        device = self._rows.device
        self._rows[torch.from_numpy(index[kept]).to(device)] = tokens[torch.from_numpy(kept).to(device)]
        return index[kept]

    def recall(self, index: Ints) -> tuple[Ints, Ints, Floats]:
        """Nothing: this memory is nobody else's."""
        return np.zeros(len(index), dtype=np.int64), np.zeros(len(index), dtype=np.int64), np.zeros(len(index))


class DiskStore:
    """A `PrefixStore` in a file: a header, one record per image, then the prefixes.

    A prefix is written before its record, and the record holds a checksum of both, which every process checks once. So
    whatever a killed process, a full disk or two writers of the same image leave is either right or as if not there.

    Args:
        path: The file; made if missing, made again if it is damaged or another one.
        total: Number of images.
        capacity: How many prefixes; a file that has room for more keeps them.
        shape: (N + 1, C) of one.
        dtype: Type of the entries.
        device: Where `read` puts them.

    Where nothing can be written, a file that is there is read.

    Raises:
        OSError: If nothing can be written, and there is no file.
    """

    def __init__(
        self, path: Path, total: int, capacity: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.path, self._shape, self._dtype, self._device = path, shape, dtype, device
        self._row_bytes = shape[0] * shape[1] * dtype.itemsize
        self._first_row = HEADER_BYTES + total * RECORD.itemsize
        header = {"format": FORMAT, "key": path.name, "total": total, "shape": shape, "dtype": str(dtype)}
        self._header = json.dumps(header).encode().ljust(HEADER_BYTES)
        self._salt = zlib.crc32(self._header)
        self._writable = True
        try:
            self._file = self._opened(capacity)
        except OSError as e:
            if not path.is_file() or not self._is_sound() or path.stat().st_size < self._first_row:
                raise
            warnings.warn(f"{path} can only be read ({e}).", stacklevel=3)
            self._writable, self._file = False, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        self.capacity = (size - self._first_row) // self._row_bytes
        everything = np.memmap(path, np.uint8, "r")
        self._records = everything[HEADER_BYTES : self._first_row].view(RECORD)
        self._rows = everything[self._first_row :].reshape(self.capacity, self._row_bytes)

    def _opened(self, capacity: int) -> int:
        """The file with room for `capacity` prefixes or more, to write to; what has not been written takes no room."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            if self.path.exists() and not self._is_sound():
                warnings.warn(f"{self.path} is damaged or another file; it is made again.", stacklevel=5)
                self.path.unlink()
            if not self.path.exists():
                write_atomically(self.path, lambda name: Path(name).write_bytes(self._header))
            file = os.open(self.path, os.O_RDWR)
            try:
                size = self._first_row + capacity * self._row_bytes
                os.truncate(file, max(size, os.fstat(file).st_size))
            except OSError:
                os.close(file)
                raise
        return file

    def _is_sound(self) -> bool:
        rows = self.path.stat().st_size - self._first_row
        with open(self.path, "rb") as file:
            return file.read(HEADER_BYTES) == self._header and (rows < 0 or rows % self._row_bytes == 0)

    def read(self, index: Ints) -> Tensor:
        """See `PrefixStore`."""
        rows = torch.from_numpy(self._rows[index])
        return rows.view(self._dtype).view(len(index), *self._shape).to(self._device)

    def write(self, index: Ints, tokens: Tensor, prediction: Ints, prob: Floats) -> Ints:
        """See `PrefixStore`; a full disk ends the writing with a warning."""
        kept: list[int] = []
        if not self._writable:
            return np.array(kept, dtype=np.int64)
        rows = tokens.contiguous().view(len(index), -1).cpu().view(torch.uint8).numpy()
        records = np.zeros(len(index), dtype=RECORD)
        records["prediction"], records["prob"] = prediction, prob
        records["known"] = np.where(index < self.capacity, PREFIX, VERDICT)
        try:
            for i, row, record in zip(index.tolist(), rows, records, strict=True):
                if i >= self.capacity and self._records["known"][i] == PREFIX:
                    continue  # of a process with more room, which has the verdict as well
                record["crc"] = self._checksum(i, record, row)
                if i < self.capacity:
                    self._put(row.tobytes(), self._first_row + i * self._row_bytes)
                self._put(record.tobytes(), HEADER_BYTES + i * RECORD.itemsize)
                if i < self.capacity:
                    kept.append(i)
        except OSError as e:
            self._writable = False
            warnings.warn(f"{self.path} is written no more ({e}); make room, or pass a smaller cache_mb.", stacklevel=5)
        return np.array(kept, dtype=np.int64)

    def _put(self, data: bytes, offset: int) -> None:
        if os.pwrite(self._file, data, offset) < len(data):
            raise OSError("no room left")

    def recall(self, index: Ints) -> tuple[Ints, Ints, Floats]:
        """See `PrefixStore`."""
        records = self._records[index]
        known = records["known"].astype(np.int64)
        for k in np.flatnonzero(known):
            has_row = known[k] == PREFIX and index[k] < self.capacity
            row = self._rows[index[k]] if has_row else np.zeros(0, dtype=np.uint8)
            if known[k] > PREFIX or records["crc"][k] != self._checksum(int(index[k]), records[k], row):
                known[k] = 0
        return known, records["prediction"], records["prob"]

    def _checksum(self, image: int, record: np.void, row: NDArray[np.uint8]) -> int:
        """Over whose verdict it is, the prefix, if the record says that there is one, and the verdict."""
        crc = zlib.crc32(image.to_bytes(8, "little"), self._salt)
        if record["known"] == PREFIX:
            crc = zlib.crc32(np.ascontiguousarray(row).data, crc)
        return zlib.crc32(record["prediction"].tobytes() + record["prob"].tobytes(), crc)


def cache_key(net: Supernet, source: ImageSource, key_mean: bool = False) -> str:
    """Digest of all that a prefix or a verdict depends on.

    The device and the version of PyTorch count as well, because another one rounds differently.

    Raises:
        ValueError: If a stem, or a token mode that reduces at full size, is a user's, and it cannot be told what it
            computes.
    """
    weight = net.pos_embed
    digest = hashlib.sha256()
    config = net.config.to_dict()
    if not reduces_at_full_size(net.config):
        # One file serves all modes that do nothing there.
        del config["space"]["token_mode"]
    for part in (json.dumps(config, sort_keys=True), weight.dtype, weight.device.type, torch.__version__):
        digest.update(f"{part}\n".encode())
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    if key_mean:
        digest.update(b"key_mean\n")
    digest.update(source.labels.cpu().contiguous().numpy().data)
    digest.update(source.identity().encode())
    for name, what, value in _of_others(net):
        try:
            digest.update(f"{name} {definition_digest(value)}\n".encode())
        except Exception as e:  # of whatever it holds, with classes of its own
            raise ValueError(
                f"cache_dir cannot keep what {name}={what!r} computes ({type(e).__name__}: {e}): another one of that "
                "name would be taken for it. Leave cache_dir out, or register a function or a class that holds no more "
                "than can be pickled."
            ) from e
    return digest.hexdigest()[:32]


def _of_others(net: Supernet) -> Iterator[tuple[str, str, Any]]:
    """Argument, name and definition of what this package does not define and a prefix or a verdict depends on."""
    config = net.config
    mode, stem = config.stands_for
    if config.stem not in OWN_STEMS:
        # What makes it may say nothing of what it is.
        kinds = {f"{k.__module__}.{k.__qualname__}": k for k in map(type, net.patch_embed.modules())}
        yield "stem", config.stem, [stem, *(kinds[k] for k in sorted(kinds) if not k.startswith("torch."))]
    if reduces_at_full_size(config) and mode not in AUTHORS_MODES.values():
        yield "token_mode", config.space.token_mode, vars(mode)
