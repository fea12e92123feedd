"""Who wrote a run: what can run code when it is read is read only if its reader made it, or says that it may."""

from __future__ import annotations

import json
import os
import platform
import shlex
from pathlib import Path
from typing import Any

from prance_env.images.config import DatasetConfig

SYSTEM = "system.json"
"""What a run folder says about where it was made."""
WRITER = "written_by"


def writer() -> dict[str, Any]:
    """This user on this machine."""
    return {"host": platform.node(), "user": os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME")}


def check_trusted(file: Path, trust: bool) -> None:
    """Refuses a file of pickled objects of somebody else, before it is opened.

    It is one's own if this user owns it and the `system.json` beside it, which names this user on this machine. Copied
    folders thus need trust, and so do those of another node of a cluster. Whoever knows the name of the machine can
    write such a record: this is a guard against surprises, not against an attack on just this user.

    Args:
        file: What would be unpickled.
        trust: Whether the user has said that it may be.

    Raises:
        ValueError: If it is not this user's and `trust` is False.
    """
    if trust or not file.exists() or is_own(file):
        return
    raise ValueError(
        f"{file} holds pickled objects, which can run any code when they are read, and no {SYSTEM} beside it says that "
        "this user has written it on this machine. Pass --trust (in Python trust=True) if you know where it comes from."
    )


def is_own(file: Path) -> bool:
    """Whether this user owns a file, and the record beside it says that they wrote it on this machine."""
    record = file.parent / SYSTEM
    try:
        noted = json.loads(record.read_text()).get(WRITER)
        owners = {file.stat().st_uid, record.stat().st_uid}
    except (AttributeError, OSError, ValueError, RecursionError):
        return False
    return noted == writer() and (not hasattr(os, "getuid") or owners == {os.getuid()})


def say_so(dataset: Any) -> str:
    """What to do about a data set that is refused because a file names it, as words for a shell."""
    text = dataset if isinstance(dataset, str) else json.dumps(dataset, default=str)
    return f"say so yourself with --dataset {shlex.quote(text)} if you want that"


def check_local(dataset: Any, source: Path, remedy: str) -> None:
    """Refuses a data set that a file names and that is not on this machine: a file is not to have anything fetched.

    Args:
        dataset: What the file says; None is none.
        source: The file, for the message.
        remedy: What to do instead, for the message.

    Raises:
        ValueError: If it would be downloaded, or read from an address.
    """
    if dataset is not None and DatasetConfig.from_value(dataset).fetches:
        raise ValueError(f"{source} names dataset={dataset!r}, which would be fetched from the network; {remedy}.")


def check_own_or_local(
    dataset: Any, source: Path, remedy: str = "the run is somebody else's: begin one of your own"
) -> None:
    """`check_local` of a file of somebody else; arguments and errors as there."""
    if not is_own(source):
        check_local(dataset, source, remedy)
