"""`python -m tools.malformed`: damages files of every kind that this package reads."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import torch
import tyro

from .trying import try_all


@dataclass
class Malformed:
    """Damage files of every kind that this package reads, and see what comes of it.

    Attributes:
        number: How many files.
        seed: Draws them.
        only: Kinds of files; all if none is named.
    """

    number: int = 756
    seed: int = 0
    only: tuple[str, ...] = ()

    def run(self) -> None:
        """Tries them, prints what is wrong, and ends with status 1 if anything is."""
        torch.set_num_threads(1)
        begun = time.monotonic()
        counts, wrong = try_all(self.number, self.seed, self.only)
        for problem in wrong:
            print(json.dumps(problem, indent=1))
        print(f"{self.number} files in {time.monotonic() - begun:.0f} s: {dict(counts)}, {len(wrong)} of them wrong")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    tyro.cli(Malformed).run()
