"""File events of a process, counted, and a fault at one of them."""

from __future__ import annotations

import builtins
import io
import os
import resource
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("kill", "torn", "full", "term")
"""SIGKILL before the event; half of what is written and SIGKILL; a disk that is full from then on; SIGTERM."""
TEMPORARY = ".tmp"
"""How the names of what is not yet in its place end."""
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: One of `KINDS`.
        event: Before which file event, from 0.
    """

    kind: str
    event: int


class FileEvents:
    """Counts what this process changes in a folder: files opened to write, first written to, flushed, moved, removed.

    Args:
        folder: Whose events count.
        fault: What goes wrong at one of them; None only counts.
    """

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder, self.fault = str(folder.absolute()), fault
        self.log: list[str] = []
        self._open, self._os_open = io.open, os.open

    def watch(self) -> None:
        """Begins; there is no end but that of the process."""
        builtins.open = io.open = self._opened  # type: ignore[assignment]
        os.open = self._os_opened
        for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "remove", "truncate"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        fsync = os.fsync

        def flushed(handle: int) -> None:
            self._happens("fsync", Path(f"/proc/self/fd/{handle}").resolve())
            fsync(handle)

        os.fsync = flushed  # type: ignore[assignment]

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **named: Any) -> Any:
            if isinstance(path, str | os.PathLike):
                self._happens(name, Path(path))
            return original(path, *args, **named)

        return call

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **named: Any) -> Any:
        if not isinstance(file, str | os.PathLike) or not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, *args, **named)
        if not self._happens("open", Path(file)):
            return self._open(file, mode, buffering, *args, **named)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), self)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered if buffering else raw
        return io.TextIOWrapper(buffered, *args, **named)

    def _os_opened(self, path: Any, flags: int, *args: Any, **named: Any) -> int:
        if flags & WRITING and isinstance(path, str | os.PathLike):
            self._happens("open", Path(path))
        return self._os_open(path, flags, *args, **named)

    def _happens(self, name: str, path: Path, half: Callable[[], object] | None = None) -> bool:
        """An event, before it; whether it is one of the folder's."""
        if not str(path.absolute()).startswith(self.folder + os.sep):
            return False
        if self.fault is not None and self.fault.event == len(self.log):
            self._fail(path, half)
        self.log.append(f"{name} {path.absolute().relative_to(self.folder)}")
        return True

    def _fail(self, path: Path, half: Callable[[], object] | None) -> None:
        assert self.fault is not None
        if self.fault.kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.fault.kind == "full":
            # Whatever writes to a file from now on fails, libraries in C included.
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            if self.fault.kind == "torn":
                half() if half is not None else _tear(path)
            os.kill(os.getpid(), signal.SIGKILL)


def _tear(path: Path) -> None:
    """Halves of temporary files, as a machine that loses its power may leave them."""
    if path.exists() and any(part.endswith(TEMPORARY) for part in path.parts):
        for file in path.rglob("*") if path.is_dir() else [path]:
            if stat.S_ISREG(file.stat().st_mode):
                with io.FileIO(file, "r+") as f:
                    f.truncate(file.stat().st_size // 2)


class _Raw(io.FileIO):
    """A file whose first write, as the operating system sees it, is an event."""

    def __init__(self, file: Any, mode: str, events: FileEvents) -> None:
        super().__init__(file, mode)
        self._events, self._path, self._fresh = events, Path(file), True

    def write(self, data: Any) -> Any:
        """Writes some bytes."""
        if self._fresh:
            self._fresh = False
            whole = bytes(data)
            self._events._happens("write", self._path, lambda: io.FileIO.write(self, whole[: len(whole) // 2]))
        return super().write(data)
