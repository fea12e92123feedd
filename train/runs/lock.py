"""One process at a time in a folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from supernet.files import remove_leftovers
from supernet.staging import finish_commit, removed_after_errors

LOCK = ".lock"
PATIENCE = 3.0
"""Seconds in which the children of a killed process end, who may hold its lock for so long."""


@contextmanager
def new_folder(wanted: Path) -> Iterator[Path]:
    """Makes a folder that was not there.

    Args:
        wanted: Its path, which gets a number behind it if it is taken.

    Yields:
        The folder; if an error leaves it empty, it is removed again.
    """
    made, number = wanted, 1
    with removed_after_errors(wanted, lock=LOCK):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                made.mkdir()
                break
            except FileExistsError:
                number += 1
                made = wanted.with_name(f"{wanted.name}-{number}")
        with removed_after_errors(made, True, LOCK):
            yield made


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps other processes of this package from writing to a folder, and tidies up after killed ones.

    The lock is the operating system's, so that a dead process holds none; the file `.lock` stays. A folder that was
    made here, and in which nothing else is when an error ends the block, is removed.

    Args:
        folder: Created if missing.

    Raises:
        FileExistsError: If another process writes to it.
    """
    with removed_after_errors(folder, lock=LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            finish_commit(folder)
            remove_leftovers(folder, alone=True)
            yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as e:
        raise FileExistsError(f"Another process writes to {folder}; wait for its end, or pass another --out.") from e
    except NotImplementedError:
        warnings.warn(f"The file system of {folder} has no locks: let no other process write to it.", stacklevel=5)
    try:
        yield
    finally:
        lock.release()
