"""How `prance` says no: one or two lines on the error stream, exit status 2."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import tyro

from .typed_numbers import REGISTRY

T = TypeVar("T")

STATUS, PREFIX = 2, "prance: "
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAID = (
    "no space left",
    "file too large",
    "disk is full",
    "disk quota exceeded",
    "disk i/o error",
    "file write failed",
    "iostream error",  # torch.save's
    "inline_container.cc",  # torch.save's, when it closes what it could not write
)
NO_ROOM = "What was there before is as it was; make room, and run the command again, with --resume if it has that."
# tyro sets explanations of options further to the right, and what follows these words is an explanation, too.
EXPLANATION, AFTERWARDS = 10, ("Argument helptext", "For full helptext")


def refuse(message: object) -> NoReturn:
    """Ends the process with a message."""
    print(f"{PREFIX}{message}", file=sys.stderr)
    sys.exit(STATUS)


def read_options(kind: type[T], prog: str, words: list[str], default: T | None, config: tuple[object, ...]) -> T:
    """What was typed, as an object; what tyro has to say about a mistake is said on one line.

    Args:
        kind: Class of the options.
        prog: The command in front of them.
        words: The options.
        default: What options that are not typed are like; None: as `kind` says.
        config: Of tyro.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _wide(not {"-h", "--help"} & set(words)):
            read: T = tyro.cli(  # type: ignore[assignment]
                kind, prog=prog, args=words, default=default, config=config, registry=REGISTRY
            )
            return read
    except SystemExit as stop:
        if stop.code != STATUS or said.getvalue().startswith(PREFIX):
            raise
        box, said = said.getvalue(), io.StringIO()
    finally:
        print(said.getvalue(), end="", file=sys.stderr)
    refuse(f"{in_one_line(box)}. See: {prog} --help")


@contextlib.contextmanager
def _wide(wanted: bool) -> Iterator[None]:
    """Lets tyro break no lines of its boxes."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before


def in_one_line(box: str) -> str:
    """What one of tyro's boxes says, without its title and explanations of options; drawn with whatever characters."""
    lines = [line.replace("│", " ").rstrip() for line in box.splitlines()]
    first = next((i for i, line in enumerate(lines) if line.strip("╭╮─- ") == "" or "╭" in line), -1) + 1
    said: list[str] = []
    for line in lines[first:]:
        if line.strip().startswith(AFTERWARDS):
            break
        if line.strip("╰╯─- ") and len(line) - len(line.lstrip()) < EXPLANATION:
            said.append(line.strip().rstrip("."))
    return _plainly(" ".join(said))


def _plainly(said: str) -> str:
    """The same without markup, and without what each of the types that an option may have says about a word."""
    said = re.sub(r"\[/?bold\]", "", said)
    # tyro says choices that include None in another order each time.
    said = re.sub(r"(?<=one of \()[^)]*'None'[^)]*", lambda found: ", ".join(sorted(found[0].split(", "))), said)
    found = re.search(r"no type matching (.+?) could be instantiated from \[(.*?)\] Got errors: (.*)", said)
    if found is None:
        return said
    kinds, words, errors = found.groups()
    own = re.search(r"'[^']*' is no whole number.*", errors)
    return said[: found.start()] + (own[0] if own else f"expected {kinds}, not {words or 'nothing'}")


@contextlib.contextmanager
def ended_by_its_reader() -> Iterator[None]:
    """A reader that has seen enough, such as `head`, ends the process without a word, as it ends other tools."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is still to be written at the end has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))


def guarded(work: Callable[[], object]) -> None:
    """Does something; errors that a user can mend are one line."""
    threading.excepthook = _in_a_thread
    try:
        work()
    except (ValueError, ModuleNotFoundError, FloatingPointError) as e:
        refuse(e)
    except BrokenPipeError:
        raise
    except OSError as e:
        if e.errno in FULL:
            refuse(f"{e}. {NO_ROOM}")
        refuse(_of_the_system(e) if e.strerror else e)
    except Exception as e:
        if not _is_full(e):
            raise
        refuse(f"A file could not be written whole, as on a full disk ({str(e).splitlines()[0]}). {NO_ROOM}")


def _of_the_system(error: OSError) -> str:
    """A failed call of the operating system, in words: what, and at which path."""
    path = f"{error.filename}: " if error.filename is not None else ""
    return f"{path}{error.strerror}. Choose another path, or change what is there."


def _in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """A full disk is one line in other threads as well: TensorBoard writes in one of its own."""
    if failed.exc_value is None or not _is_full(failed.exc_value):
        threading.__excepthook__(failed)
        return
    print(f"{PREFIX}{failed.exc_value}", file=sys.stderr)


def _is_full(error: BaseException) -> bool:
    """Whether a library says in its own words, with an error of its own, that a disk is full."""
    words = str(error).lower()
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(said in words for said in SAID) or (error.__context__ is not None and _is_full(error.__context__))
