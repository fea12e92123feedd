"""One process at a time in a folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from supernet.files import remove_leftovers
from supernet.staging import finish_commit

LOCK = ".lock"
PATIENCE = 3.0
"""Seconds in which the children of a killed process end, who may hold its lock for so long."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps other processes of this package from writing to a folder, and tidies up after killed ones.

    The lock is the operating system's, so that a dead process holds none; the file `.lock` stays.

    Args:
        folder: Created if missing.

    Raises:
        FileExistsError: If another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as e:
        raise FileExistsError(f"Another process writes to {folder}; wait for its end, or pass another --out.") from e
    except NotImplementedError:
        warnings.warn(f"The file system of {folder} has no locks: let no other process write to it.", stacklevel=3)
    try:
        finish_commit(folder)
        remove_leftovers(folder, alone=True)
        yield
    finally:
        lock.release()
