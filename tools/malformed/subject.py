"""One kind of file that is damaged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        make: Writes valid ones to a folder.
        file: The one that is damaged.
        use: Loads what is in the folder and uses it; raises if that cannot be right.
        alone: Whether it changes the folder, and is to have a copy of it.
    """

    make: Callable[[Path], object]
    file: str
    use: Callable[[Path], object]
    alone: bool = False

    def used(self, folder: Path) -> None:
        """Uses what is in a folder, which stays as it is."""
        if not self.alone:
            self.use(folder)
            return
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            self.use(Path(shutil.copytree(folder, Path(name, "copy"))))
