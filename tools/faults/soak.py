"""Fault after fault in one and the same run, of every kind and at any moment, until it is done all the same."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .cases import Case
from .events import KINDS
from .folders import differences
from .forked import Outcome, run
from .walk import ENDS, RANDOM, Found, Planned, is_done, run_with, words_to_go_on, wrong_end

SOAK = "soak"
MOST = 6
"""Faults in one run."""


def soak(
    name: str, case: Case, planned: Planned, reference: Outcome, whole: Path, out: Path, seed: int
) -> Iterator[Found]:
    """Run after run, for the seconds that are planned.

    Args:
        name: Of the command.
        case: The command.
        planned: For how long; no further run is begun after that.
        reference: How the command ends when nothing goes wrong.
        whole: What it then writes.
        out: Where to try; removed at the end.
        seed: Draws the faults.
    """
    rng, until = random.Random(seed), time.monotonic() + planned.at
    while time.monotonic() < until:
        told, problems = _soaked(case, reference, whole, out, rng)
        yield Found(name, planned, problems, len(told))


def _soaked(case: Case, reference: Outcome, whole: Path, out: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """The faults of a run, and what is wrong about what came of them."""
    shutil.rmtree(out, ignore_errors=True)
    problems, told = list[str](), list[str]()
    for _ in range(rng.randint(1, MOST)):
        kind = rng.choice((*KINDS, RANDOM))
        fault = Planned(kind, rng.random() if kind == RANDOM else rng.randrange(len(reference.events)))
        ended = run_with(fault, words_to_go_on(case, out), out, reference.seconds)
        told.append(f"{kind} {fault.at:.5g}")
        problems += [] if is_done(ended, case) else wrong_end(ended, {0} | ENDS[kind], ", ".join(told))
    last = run(words_to_go_on(case, out), out)
    problems += [] if is_done(last, case) else wrong_end(last, {0}, f"resumed after {', '.join(told)}")
    problems += [f"after {', '.join(told)}: {problem}" for problem in differences(whole, out)]
    shutil.rmtree(out, ignore_errors=True)
    return told, problems
