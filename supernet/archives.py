"""Zip archives of arrays and of training states: read without running anything, and refused if a bit has flipped."""

from __future__ import annotations

from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np
import torch
from numpy.typing import NDArray

# An archive says with RuntimeErrors that it is encrypted, or of a later version.
DAMAGED = (BadZipFile, EOFError, LZMAError, MemoryError, OSError, RuntimeError, UnicodeError, ZlibError)
"""What reading a damaged archive raises."""


FOLDER = 0x10
"""The bit of a member's attributes that says that it is one."""
REMEDY = "put a copy of it back, or begin anew in another folder"


def check_archive(path: Path) -> None:
    """Compares everything in an archive with the checksums that it holds; `torch.load` does not.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no archive.
    """
    with path.open("rb") as f:
        try:
            with ZipFile(f) as archive:
                members = archive.infolist()
                # An archive in an archive is not taken for the whole, of which the end is missing.
                if min((member.header_offset for member in members), default=0):
                    raise BadZipFile("its end is missing, or something stands before it")
                # `torch.load` gives what lay in memory for the contents of a folder.
                if any(member.external_attr & FOLDER for member in members):
                    raise BadZipFile("it says that files are folders")
                wrong = archive.testzip()
        except (*DAMAGED, ValueError) as e:
            raise ValueError(f"{path} is damaged ({str(e) or type(e).__name__}); {REMEDY}.") from e
    if wrong is not None:
        raise ValueError(f"{path} is damaged (the checksum of {wrong} in it is that of something else); {REMEDY}.")


def load_state(path: Path) -> Any:
    """Plain data and tensors that `torch.save` wrote, whole and on the CPU; nothing else is unpickled.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds more.
    """
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler answers what it does not know with exceptions of any kind
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} holds something else than a training state ({reason}); {REMEDY}.") from e


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file, by name; objects are not unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or another file.
    """
    with path.open("rb") as f:
        try:
            with np.load(f, allow_pickle=False) as held:
                # An array that is said to be shorter than it is would be read without its checksum.
                if (wrong := held.zip.testzip()) is not None:
                    raise BadZipFile(f"the checksum of {wrong} in it is that of something else")
                return {name: held[name] for name in held.files}
        # What is no archive may be a single array, which is no context and has no names.
        except (*DAMAGED, AttributeError, TypeError, ValueError) as e:
            raise ValueError(f"{path} is damaged or holds no arrays by name ({str(e) or type(e).__name__}).") from e
