"""What a command that was stopped says at its end: whether something is kept, and the words that go on with it."""

from __future__ import annotations

import os
import shlex
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .own_modules import OPTION, named_modules

STOPPED = "Stopped."
NOTHING = "Stopped before anything was saved."
SAME = "Stopped; the same command goes on."
NOT_NOTED = ("device", "threads", "save_freq", "max_hours")
"""Options that no folder of a run holds, since no result depends on them; it does hold the device of an environment."""


def out_of(words: list[str]) -> Path | None:
    """The folder that `--out` names among the words of a command."""
    out = _typed(words, ["out"]).get("out")
    return None if out is None else Path(out)


def _typed(words: list[str], names: Iterable[str]) -> dict[str, str]:
    """Those of some options that a command has, each with its one word, by name."""
    reader = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        reader.add_argument(_flag(name), f"--{name}", dest=name)
    return {k: v for k, v in vars(reader.parse_known_args(words)[0]).items() if v is not None}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def after_stop(kind: type[Any], path: list[str], words: list[str]) -> str:
    """What to tell somebody who has pressed Ctrl-C.

    Args:
        kind: The command's options; `begun` is the file that tells that there is something to resume.
        path: The words that name the command.
        words: Its options.
    """
    if getattr(kind, "same_goes_on", False):
        return SAME
    if "resume" not in getattr(kind, "__dataclass_fields__", {}):
        return STOPPED
    from .runs.folder import CONFIG  # with torch, which help texts do without

    out = out_of(words)
    if out is None or not (out / getattr(kind, "begun", CONFIG)).is_file():
        return NOTHING
    if hasattr(kind, "resumed"):  # the folder knows the rest of what results depend on
        modules = named_modules(words)
        trust = ["--trust"] if "--trust" in words else []
        kept = _typed(words, [name for name in NOT_NOTED if name in kind.__dataclass_fields__])
        own = [word for name, value in kept.items() for word in (_flag(name), value)]
        words = ["--resume", "--out", str(out), *([OPTION, *modules] if modules else []), *trust, *own]
    elif "--resume" not in words:
        words = ["--resume", *words]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # whose launcher's own words nobody here knows
        return f"Go on, launched as before, with: {shlex.join(['-m', 'train', *path, *words])}"
    return f"Go on with: {shlex.join(['prance', *path, *words])}"
