"""How everything here is extended: registries of names, and plug-ins that add to them.

A package that is installed beside this one is found through the entry point group `prance_env.plugins`. Each entry
names a module, which registers things when it is imported, or a function, which is called:

    [project.entry-points."prance_env.plugins"]
    my_modes = "my_package.modes"

Plug-ins are loaded when a name is first looked up or listed, never by importing this package.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from .forked_lock import ForkedLock

GROUP = "prance_env.plugins"
T = TypeVar("T")
_lock = ForkedLock()
# The thread that has begun to load, and what it has come to the end of.
_asker: int | None = None
_loaded: set[EntryPoint] = set()
_done = False
_failed: list[RuntimeError] = []


def load_plugins() -> None:
    """Loads every plug-in that is installed, once per process.

    Raises:
        RuntimeError: If plug-ins have raised, at this call or an earlier one; the message names each and its package.
            The others are loaded.
    """
    global _asker, _done
    # Asking what is installed takes milliseconds, and names are looked up all the time.
    if not _done:
        with _lock.here:
            # A plug-in may itself look names up, in this thread; others wait at the lock.
            if _asker is None:
                _asker = threading.get_ident()
                try:
                    for entry in entry_points(group=GROUP):
                        if entry not in _loaded:
                            _load(entry)
                            _loaded.add(entry)
                finally:
                    _done = True
    # At every call, since a name that is missing would otherwise be said to be unknown.
    if _done and _failed:
        raise RuntimeError(" ".join(str(error) for error in _failed)) from _failed[0].__cause__


def _begin_again() -> None:
    """In a forked child, which has not the thread of its parent that was loading: the next look-up loads the rest."""
    global _asker
    if not _done and _asker != threading.get_ident():
        _asker = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)


def _load(entry: EntryPoint) -> None:
    package = entry.dist.name if entry.dist is not None else "?"
    try:
        loaded = entry.load()
        if callable(loaded):
            loaded()
    except Exception as e:
        error = RuntimeError(
            f"The plug-in {entry.name!r} ({entry.value}) of the installed package {package!r} failed "
            f"({type(e).__name__}: {e}); mend or uninstall that package."
        )
        error.__cause__ = e
        _failed.append(error)


class Registry(Generic[T]):
    """Things by name: what this package brings and what users add.

    Args:
        what: What the things are called in messages, such as "token mode".
        how: The function that users add one with, named in messages.
        argument: The argument that takes the name, named in messages.
    """

    def __init__(self, what: str, how: str, argument: str) -> None:
        self.what, self.how, self.argument = what, how, argument
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T, same: Callable[[T, T], bool] = lambda a, b: a is b or a == b) -> T:
        """Adds a thing and returns it. Adding the same thing again changes nothing.

        Args:
            name: Its name, not empty.
            thing: The thing.
            same: Whether two things are the same.

        Raises:
            ValueError: If the name is empty, or taken by another thing.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"{name!r} is no name for a {self.what}; pass a text that is not empty.")
        if name in self._things and not same(self._things[name], thing):
            raise ValueError(f"{self.what.capitalize()} name {name!r} is taken; registered are {sorted(self.names())}.")
        self._things[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        """The thing of that name.

        Raises:
            ValueError: If there is none; the message lists the names and says how to add one.
        """
        if name not in self:
            raise ValueError(
                f"{self.argument}={name!r} is unknown; choose one of {self.names()}, or add yours with {self.how}."
            )
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._things:
            load_plugins()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        load_plugins()
        return list(self._things)

    def remove(self, name: str) -> None:
        """Takes a name out again, for tests and notebooks; nothing happens if it is not there."""
        self._things.pop(name, None)
