"""Ctrl-C at random moments of a command, and whether what it then says is true."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from train.going_on import NOTHING, SAME, STOPPED

from .cases import Case
from .folders import contents, differences, same
from .forked import run
from .walk import Found, Planned, is_done, wrong_end

INTERRUPT = "interrupt"
INTERRUPTED = 128 + signal.SIGINT
EARLIEST = 0.02
"""Seconds in which a forked process becomes a command."""
MOST_LINES = 3
"""That Ctrl-C has been heard, where it stopped, and how it goes on."""
BAR = re.compile(r"\d+%|\d+/\d+|it/s|\[\d\d:\d\d|━|█")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plan_interrupts(moments: int, seed: int) -> Iterator[Planned]:
    """Random moments of a command, as fractions of its time."""
    rng = random.Random(seed)
    for _ in range(moments):
        yield Planned(INTERRUPT, rng.random())


def interrupt_one(name: str, case: Case, planned: Planned, whole: Path, seconds: float, out: Path) -> Found:
    """Presses Ctrl-C, does what the command says, and compares with a run that nothing happened to.

    Args:
        name: Of the command.
        case: The command.
        planned: The moment.
        whole: What the command writes when nothing goes wrong.
        seconds: How long it then takes.
        out: Where to try; removed at the end.
    """
    _remove(out)
    first = run(case.words, out, interrupt_after=max(EARLIEST, planned.at * seconds), writes=case.writes)
    problems = wrong_end(first, {0, INTERRUPTED}, "interrupted")
    if first.status == INTERRUPTED:
        said = lines_of(first.afterwards)
        words = words_to_go_on(said, case, out)
        if words is None or len(said) > MOST_LINES:
            problems.append(f"interrupted, it says: {said}")
        words = case.words if words is None else words
        last = run(words, out, interrupt_after=case.lasts, writes=case.writes)
        problems += [] if is_done(last, case) else wrong_end(last, {0}, f"gone on with as said ({said[-1:]})")
    problems += _unlike(whole, out, case)
    _remove(out)
    return Found(name, planned, problems)


def lines_of(text: str) -> list[str]:
    """What a command says, without progress bars and tables."""
    lines = (line.strip() for line in re.split(r"[\r\n]", CONTROL.sub("", text)))
    return [line for line in lines if line and not BAR.search(line)]


def words_to_go_on(said: list[str], case: Case, out: Path) -> tuple[str, ...] | None:
    """The words that the last line tells one to type, but for --out; None if it tells nothing that is known, or names
    another folder."""
    last = said[-1] if said else ""
    if last in (NOTHING, SAME, STOPPED):
        return case.words
    before, told, command = last.partition("Go on with: prance ")
    words = shlex.split(command)
    if before or not told or words.count("--out") != 1:
        return None
    at = words.index("--out")
    return (*words[:at], *words[at + 2 :]) if words[at + 1] == str(out) else None


def _unlike(whole: Path, out: Path, case: Case) -> list[str]:
    """What differs between what was interrupted and what was not."""
    if bool(_written(out)) != case.writes:
        return ["nothing is written" if case.writes else "something is written"]
    if not case.repeatable:
        return []
    if whole.is_file():
        return [] if same(contents(whole), contents(out)) else ["the file differs"]
    return differences(whole, out)


def _written(out: Path) -> list[Path]:
    """What a command has written; some put suffixes behind --out."""
    return [out] if out.is_dir() else [*out.parent.glob(f"{out.name}*")]


def _remove(out: Path) -> None:
    for path in _written(out):
        if path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
