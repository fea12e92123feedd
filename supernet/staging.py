"""Several files that change as one: all of them or none, whatever happens to the process in between."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import flush, remove_leftovers, temporary_name

COMMIT = ".commit"
"""Complete files that are on their way to the folder that this one is in."""
GONE = ".gone"
"""What ends so among them says that the file of the name before it is to go."""


@contextmanager
def staged(folder: Path, earlier: Collection[str] = ()) -> Iterator[Path]:
    """A hidden folder whose files replace those of `folder` when the block ends, all of them or none.

    The hidden folder is flushed to the disk and renamed to `COMMIT`, which decides that the files count; then they are
    moved to their places. If the process is killed before the rename, nothing has changed; if it is killed after it,
    `finish_commit` moves the rest.

    Args:
        folder: Created if missing, and removed again after an error. Files that the block does not write stay as they
            are.
        earlier: Names of files that go together with the change, unless the block writes them.

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
            for name in earlier:
                if (folder / name).exists() and not (stage / name).exists():
                    (stage / f"{name}{GONE}").touch()
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
    """Moves complete files to their places, and removes what goes with them, that a killed process had no time for.

    To be called before reading; several processes may do so at once.
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
        elif path.name.endswith(GONE):
            # Moved first: one that another process puts there afterwards is not to be removed.
            with suppress(FileNotFoundError):
                if path.exists():
                    os.replace(place.with_name(path.name.removesuffix(GONE)), path)
            path.unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(path, place)
    for place in changed:
        flush(place)
    for path in [*reversed(paths), commit]:
        with suppress(OSError):  # not empty: the next commit is there already
            path.rmdir()
