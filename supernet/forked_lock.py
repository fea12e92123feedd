"""A lock that forked children find open: they would wait forever for a thread that only their parent has."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_locks: weakref.WeakSet[ForkedLock] = weakref.WeakSet()


class ForkedLock:
    """A re-entrant lock, open in every process and copy that begins: `with lock.here:`.

    Attributes:
        here: The lock of this process. A block that forks leaves the one that it has entered.
    """

    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Begins with a lock that nobody holds."""
        self.here = threading.RLock()
        _locks.add(self)

    def __reduce__(self) -> tuple[type[ForkedLock], tuple[Any, ...]]:
        return ForkedLock, ()


def _open_all() -> None:
    for lock in list(_locks):
        lock.open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
