"""A memory of arrays or tensors that is bounded by the bytes that they take."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from .forked_lock import ForkedLock


class Sized(Protocol):
    """An array or a tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take."""


V = TypeVar("V", bound=Sized)


class Bounded(Generic[V]):
    """Values by key; those that were asked for longest ago go when there are too many bytes. Threads may share it.

    Args:
        most_bytes: Bytes of all values together; a value that is larger alone is not kept.

    Attributes:
        nbytes: Bytes that are taken now.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.nbytes = most_bytes, 0
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = ForkedLock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key; made, and kept, if it is not there."""
        with self._lock.here:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock.here:
            if key not in self._kept and value.nbytes <= self.most_bytes:
                self._kept[key] = value
                self.nbytes += value.nbytes
            while self.nbytes > self.most_bytes:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return value
