"""What a command that was stopped says at its end: whether something is kept, and the words that go on with it."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from .own_modules import OPTION, named_modules

STOPPED = "Stopped."
NOTHING = "Stopped before anything was saved."
SAME = "Stopped; the same command goes on."


def out_of(words: list[str]) -> Path | None:
    """The folder that `--out` names among the words of a command."""
    reader = ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--out", type=Path)
    return reader.parse_known_args(words)[0].out


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
    if hasattr(kind, "resumed"):  # the folder knows the rest
        modules = named_modules(words)
        trust = ["--trust"] if "--trust" in words else []
        words = ["--resume", "--out", str(out), *([OPTION, *modules] if modules else []), *trust]
    elif "--resume" not in words:
        words = ["--resume", *words]
    return f"Go on with: {shlex.join(['prance', *path, *words])}"
