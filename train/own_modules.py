"""`--import`: modules of users, which register what is theirs before the other options are read."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

from tyro.conf import arg

OPTION = "--import"
OURS = ("agents", "prance_env", "supernet", "train")
"""Packages that are there already, so that no file of the user's is imported by these names."""
Imports = Annotated[
    tuple[str, ...],
    arg(
        name=OPTION.removeprefix("--"),
        metavar="MODULE ...",
        help="Modules of yours to import first, which register rewards, environments, token modes, data sets, ...: in "
        "this folder or on Python's path.",
        help_behavior_hint="",
    ),
]


def named_modules(words: list[str]) -> list[str]:
    """What stands behind `--import` in a command."""
    found: list[str] = []
    for at, word in enumerate(words):
        if word.startswith(f"{OPTION}="):
            found.append(word.removeprefix(f"{OPTION}="))
        elif word == OPTION:
            behind = words[at + 1 :]
            ends = [i for i, other in enumerate(behind) if other.startswith("-")]
            found += behind[: ends[0]] if ends else behind
    return found


def import_named(words: list[str]) -> None:
    """Imports what stands behind `--import`, since choices of options may come of it.

    Nothing else that a command reads is ever imported: no folder can have code run.

    Raises:
        ValueError: If a module is missing or fails, or its name is taken by a package of ours.
    """
    for name in named_modules(words):
        if (package := name.removesuffix(".py").split(".")[0]) in OURS:
            raise ValueError(
                f"{OPTION} {name}: {', '.join(OURS)} are packages of prance-env itself; rename your file, such as to "
                f"my_{package}.py, and pass {OPTION} my_{package}."
            )
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
        importlib.invalidate_caches()
        try:
            importlib.import_module(name.removesuffix(".py"))
        except ModuleNotFoundError as e:
            if e.name is None or not name.startswith(e.name):
                raise ValueError(f"{OPTION} {name} failed: {e}.") from e
            raise ValueError(
                f"{OPTION} {name}: there is no such module in {here} or on Python's path; set PYTHONPATH to its folder."
            ) from e
        except Exception as e:  # it is the user's code
            raise ValueError(f"{OPTION} {name} failed ({type(e).__name__}: {e}).") from e
