"""Several files that change as one: all of them or none, whatever happens to the process in between."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import flush, remove_leftovers, temporary_name

COMMIT = ".commit"
"""Complete files that are on their way to the folder that this one is in."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder whose files replace those of `folder` when the block ends, all of them or none.

    The hidden folder is flushed to the disk and renamed to `COMMIT`, which decides that the files count; then they are
    moved to their places. If the process is killed before the rename, nothing has changed; if it is killed after it,
    `finish_commit` moves the rest.

    Args:
        folder: Created if missing, and removed again after an error. Files that the block does not write stay as they
            are.

    Yields:
        The hidden folder; files may lie in folders of it.
    """
    with removed_after_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        stage = temporary_name(folder / "stage")
        stage.mkdir()
        try:
            yield stage
            for path in [*stage.rglob("*"), stage]:
                flush(path)
            finish_commit(folder)
            os.replace(stage, folder / COMMIT)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
    flush(folder)
    finish_commit(folder)


@contextmanager
def removed_after_errors(folder: Path, own: bool = False, lock: str = "") -> Iterator[None]:
    """Removes, after an error, a folder and its parents if they were made meanwhile, and nobody has put anything there.

    Args:
        folder: The folder.
        own: Whether it was made just before.
        lock: Name of a file that may lie there all the same.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()] or ([folder] if own else [])
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if made and lock and folder.exists() and os.listdir(folder) == [lock]:
                (folder / lock).unlink()
            for path in made:
                if path.exists():
                    path.rmdir()  # only if it is empty
        raise


def finish_commit(folder: Path) -> None:
    """Moves complete files to their places that a killed process had no time to move; to be called before reading.

    Several processes may do so at once.
    """
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    paths = sorted(commit.rglob("*"))
    changed = {folder}
    for path in paths:
        place = folder / path.relative_to(commit)
        if path.is_dir():
            place.mkdir(exist_ok=True)
            changed.add(place)
        else:
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(path, place)
    for place in changed:
        flush(place)
    for path in [*reversed(paths), commit]:
        with suppress(OSError):  # not empty: the next commit is there already
            path.rmdir()
