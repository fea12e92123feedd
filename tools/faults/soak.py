"""Fault after fault in one and the same run, of every kind and at any moment, until it is done all the same."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .cases import Case
from .events import KINDS, Fault
from .folders import differences
from .forked import Outcome, run
from .walk import ENDS, RANDOM, Found, Planned, is_done, words_to_go_on, wrong_end

SOAK = "soak"
MOST = 6
"""Faults in one run."""


def soak(
    name: str, case: Case, reference: Outcome, whole: Path, out: Path, seconds: float, seed: int
) -> Iterator[Found]:
    """Run after run, for so long; `Found.planned.at` is the number of its faults.

    Args:
        name: Of the command.
        case: The command.
        reference: How it ends when nothing goes wrong.
        whole: What it then writes.
        out: Where to try; removed at the end.
        seconds: After which no further run is begun.
        seed: Draws the faults.
    """
    rng, until = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < until:
        yield _soaked(name, case, reference, whole, out, rng)


def _soaked(name: str, case: Case, reference: Outcome, whole: Path, out: Path, rng: random.Random) -> Found:
    shutil.rmtree(out, ignore_errors=True)
    problems, told = list[str](), list[str]()
    for _ in range(rng.randint(1, MOST)):
        kind = rng.choice((*KINDS, RANDOM))
        words = words_to_go_on(case, out)
        if kind == RANDOM:
            at = rng.random() * reference.seconds
            ended = run(words, out, kill_after=at)
        else:
            at = rng.randrange(len(reference.events))
            ended = run(words, out, Fault(kind, at))
        told.append(f"{kind} {at:.5g}")
        problems += [] if is_done(ended, case) else wrong_end(ended, {0} | ENDS[kind], ", ".join(told))
    last = run(words_to_go_on(case, out), out)
    problems += [] if is_done(last, case) else wrong_end(last, {0}, f"resumed after {', '.join(told)}")
    problems += [f"after {', '.join(told)}: {problem}" for problem in differences(whole, out)]
    shutil.rmtree(out, ignore_errors=True)
    return Found(name, Planned(SOAK, len(told)), problems)
