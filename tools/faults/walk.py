"""Walking the file events of a command: a fault at each, and what comes of going on."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cases import Case
from .events import KINDS, TEMPORARY, Fault
from .folders import differences
from .forked import Outcome, run

RANDOM = "random"
KILLED, TERMINATED = -signal.SIGKILL, 128 + signal.SIGTERM
ENDS = {"kill": {KILLED}, "torn": {KILLED}, "full": {0, 2}, "term": {0, TERMINATED}, RANDOM: {0, KILLED}}
"""Exit statuses that may follow a fault; a command that is done does not mind that there is no room left."""
OTHERS = KINDS[1:]
TWICE = 4
"""Every so many runs that were killed and resumed are killed as well, at an event of their own, and resumed again."""


@dataclass(frozen=True)
class Planned:
    """One fault of the walk.

    Attributes:
        kind: One of `KINDS`, or "random": SIGKILL at any moment, in the middle of whatever runs; "interrupt": Ctrl-C;
            "soak": one fault after the other.
        at: The file event; for "random" and "interrupt" the fraction of the command's time; for "soak" the seconds.
        again: At which event the resumed run is killed as well; None: not.
    """

    kind: str
    at: float
    again: int | None = None


@dataclass(frozen=True)
class Found:
    """What came of a fault, or of several in one run; `problems` is empty if all is well."""

    command: str
    planned: Planned
    problems: list[str]
    faults: int = 1

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def plan(case: Case, events: list[str], every: int, moments: int, seed: int, whole: bool = False) -> Iterator[Planned]:
    """The faults of a walk through a command.

    Args:
        case: The command.
        events: Its file events.
        every: Walk every so many of them. At each there is a SIGKILL, and another fault; the others take turns.
        moments: How many SIGKILLs at random moments.
        seed: Draws them, and the second faults.
        whole: Torn writes and a full disk at each that is walked, instead of another fault in turn, and all events of a
            command's parts.
    """
    rng, stride = random.Random(seed), every if whole else every * case.every
    walked = [at for at, event in enumerate(events) if at % stride == 0 or (every == 1 and _of_itself(event))]
    for turn, at in enumerate(walked):
        again = rng.randrange(len(events)) if turn % TWICE == 0 else None
        yield Planned("kill", at, again)
        if not whole:
            yield Planned(OTHERS[turn % len(OTHERS)], at)
            continue
        yield Planned("full", at)
        if _can_be_torn(events[at]):
            yield Planned("torn", at)
    for _ in range(moments):
        yield Planned(RANDOM, rng.random())


def _of_itself(event: str) -> bool:
    """Whether an event is the command's own, not one of a part's that has a folder of its own."""
    path = Path(event.split(" ", 1)[1])
    return len(path.parts) == 1 or path.parts[0].startswith(".")


def _can_be_torn(event: str) -> bool:
    """Whether there is something half of which can be there: without it, a torn write is a SIGKILL."""
    name, path = event.split(" ", 1)
    return name == "write" or (name not in ("open", "mkdir") and TEMPORARY in path)


def walk_one(name: str, case: Case, planned: Planned, whole: Path, seconds: float, out: Path) -> Found:
    """Lets one thing go wrong, goes on, and compares.

    Args:
        name: Of the command.
        case: The command.
        planned: The fault.
        whole: What the command writes when nothing goes wrong.
        seconds: How long it then takes.
        out: Where to try; removed at the end.
    """
    shutil.rmtree(out, ignore_errors=True)
    first = run_with(planned, case.words, out, seconds)
    problems = wrong_end(first, ENDS[planned.kind], "with the fault")
    if planned.again is not None:
        second = run(words_to_go_on(case, out), out, Fault("kill", planned.again))
        problems += [] if is_done(second, case) else wrong_end(second, {0, KILLED}, "killed again")
    last = run(words_to_go_on(case, out), out)
    problems += [] if is_done(last, case) else wrong_end(last, {0}, "resumed")
    problems += differences(whole, out)
    shutil.rmtree(out, ignore_errors=True)
    return Found(name, planned, problems)


def run_with(planned: Planned, words: tuple[str, ...], out: Path, seconds: float) -> Outcome:
    """Runs a command that takes so many seconds, with a fault at a file event or at any moment."""
    if planned.kind == RANDOM:
        return run(words, out, kill_after=planned.at * seconds)
    return run(words, out, Fault(planned.kind, int(planned.at)))


def words_to_go_on(case: Case, out: Path) -> tuple[str, ...]:
    """With --resume, if there is a run that can be resumed; what says that there is none says to drop it."""
    return case.words if case.resume is None or not (out / case.begun).exists() else case.resume


def is_done(outcome: Outcome, case: Case) -> bool:
    """Whether a second start says that nothing is left to do."""
    return case.done is not None and outcome.status == 2 and case.done in outcome.text


def wrong_end(outcome: Outcome, allowed: set[int], when: str) -> list[str]:
    """What is wrong about the end of a command: another exit status than is allowed, or a traceback."""
    problems = []
    if outcome.status not in allowed:
        problems.append(f"{when}: exit status {outcome.status} instead of {sorted(allowed)}")
    if "Traceback" in outcome.text:
        problems.append(f"{when}: a traceback")
    return [f"{problem}: {outcome.text[-1500:]}" for problem in problems]
