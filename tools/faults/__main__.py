"""`python -m tools.faults`: see `Walk`."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from supernet.files import write_text
from train.machine import machine
from train.report.tables import Table

from .cases import Case, cases, short_cases, small_world
from .forked import Outcome, run
from .interrupts import INTERRUPT, interrupt_one, plan_interrupts
from .soak import SOAK, soak
from .walk import Found, Planned, plan, walk_one

SHOWN = 5


@dataclass
class Walk:
    """Kill, tear and fill the disk at the file events of every long command, go on, and compare with a run that nothing
    happened to: the folders must hold the same, bit for bit.

    Attributes:
        commands: Which of them; all if none is named.
        every: Walk every so many file events.
        whole: At each, a SIGKILL, a full disk and, where something can be torn, a torn write, instead of a SIGKILL and
            one of the others in turn.
        kinds: Only these of them; all if none is named.
        moments: SIGKILLs at random moments of every command, beside those at file events.
        interrupts: Instead of all that, Ctrl-C at so many random moments, doing then what the command says; of shorter
            commands as well.
        soak: Instead of all that, run after run for so many minutes for each command, with up to six faults of any kind
            in each.
        jobs: Processes.
        seed: Draws the random moments.
        out: JSON file for what was found.
    """

    commands: tuple[str, ...] = ()
    every: int = 1
    whole: bool = False
    kinds: tuple[Literal["kill", "torn", "full", "term"], ...] = ()
    moments: int = 10
    interrupts: int = 0
    soak: float = 0
    jobs: int = 2
    seed: int = 0
    out: Path | None = None

    def run(self) -> None:
        """Walks, prints a table, and ends with status 1 if anything is wrong."""
        torch.set_num_threads(1)
        begun, console = time.monotonic(), Console()
        table = Table("command", "file events", "faults", "of which", "wrong")
        wrong: list[Found] = []
        report: dict[str, Any] = {"machine": machine("cpu"), "seed": self.seed, "every": self.every, "commands": {}}
        with tempfile.TemporaryDirectory(prefix="prance-faults-") as folder, small_world():
            known = cases(Path(folder))
            if self.interrupts:
                known |= short_cases(Path(folder))
            for name in self.commands or known:
                events, found = self._walk(name, known[name], Path(folder), console)
                bad = [f for f in found if f.problems]
                kinds = Counter[str]()
                for f in found:
                    kinds[f.planned.kind] += f.faults
                table.add_row(name, str(events), str(kinds.total()), _in_words(kinds), str(len(bad)))
                wrongs = [f.plain() for f in bad]
                report["commands"][name] = {"events": events, "runs": len(found), "faults": kinds, "wrong": wrongs}
                wrong += bad
                for f in bad[:SHOWN]:
                    console.print(f"{name}, {f.planned}:", *f.problems, sep="\n  ", markup=False, highlight=False)
        console.print(table)
        report["seconds"] = round(time.monotonic() - begun, 1)
        faults = sum(sum(c["faults"].values()) for c in report["commands"].values())
        console.print(f"{faults} faults in {report['seconds']:.0f} s, {len(wrong)} of them wrong")
        if self.out is not None:
            write_text(self.out, json.dumps(report, indent=1) + "\n")
        sys.exit(1 if wrong else 0)

    def _planned(self, case: Case, reference: Outcome) -> list[Planned]:
        """What is to go wrong, or for how long."""
        if self.soak:
            return [Planned(SOAK, 60 * self.soak)] * self.jobs
        if self.interrupts:
            return [*plan_interrupts(self.interrupts, self.seed)]
        faults = plan(case, reference.events, self.every, self.moments, self.seed, self.whole)
        return [p for p in faults if not self.kinds or p.kind in self.kinds]

    def _walk(self, name: str, case: Case, folder: Path, console: Console) -> tuple[int, list[Found]]:
        whole = folder / name / "whole"
        reference = run(case.words, whole, interrupt_after=case.lasts, writes=case.writes)
        if reference.status:
            sys.exit(f"{name} fails by itself: {reference.text}")
        planned = self._planned(case, reference)
        asked = f"{self.soak:g} minutes of soak" if self.soak else f"{len(planned)} faults"
        console.print(f"{name}: {len(reference.events)} file events, {asked}")
        with multiprocessing.get_context("fork").Pool(self.jobs) as pool:
            parts = [
                (name, case, planned[job :: self.jobs], whole, reference, self.seed + job) for job in range(self.jobs)
            ]
            found = [f for part in pool.starmap(_walk_part, parts) for f in part]
        shutil.rmtree(folder / name, ignore_errors=True)  # there is none of what writes nothing
        return len(reference.events), found


def _walk_part(
    name: str, case: Case, planned: Sequence[Planned], whole: Path, reference: Outcome, seed: int
) -> list[Found]:
    # The same name for every try, as some files hold it.
    out, found = Path(tempfile.mkdtemp(prefix="prance-faults-")) / "run", list[Found]()
    for p in planned:
        if p.kind == SOAK:
            found += soak(name, case, p, reference, whole, out, seed)
        else:
            one = interrupt_one if p.kind == INTERRUPT else walk_one
            found.append(one(name, case, p, whole, reference.seconds, out))
    return found


def _in_words(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


if __name__ == "__main__":
    tyro.cli(Walk).run()
