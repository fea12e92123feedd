"""`prance yardsticks`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..options import Effort, Threads, narrowed, set_threads
from ..own_modules import Imports
from ..yardsticks.compute import YardstickSettings, run_yardsticks


@dataclass(frozen=True, kw_only=True)
class Yardsticks(YardstickSettings):
    """Compute what agents are measured by: the best static subnets for all images and for every difficulty, the tuned
    confidence heuristic, and the per-image oracle. All are chosen on one split and judged on another.

    The same command goes on with a search that was stopped.

    With --effort small: --num-subnets 60 --oracle-subnets 16 --copies 1 --sweeps 1.

    For example:

        prance yardsticks --out runs/yardsticks
        prance yardsticks --out runs/yardsticks --checkpoint runs/supernet --num-subnets 1000
        prance yardsticks --out runs/yardsticks --also-static runs/constant-0 runs/constant-1
        prance eval --agent runs/agent --yardsticks runs/yardsticks
        prance yardsticks --out runs/quick --effort small
    """

    out: Path
    """Folder for the agents, yardsticks.json and outcomes.npz."""
    threads: Threads = 0
    effort: Effort = "full"
    imports: Imports = ()
    same_goes_on: ClassVar[bool] = True
    small: ClassVar[str] = "--num-subnets 60 --oracle-subnets 16 --copies 1 --sweeps 1"

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_yardsticks(narrowed(self, YardstickSettings), self.out)
