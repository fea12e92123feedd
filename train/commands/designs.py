"""`prance designs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, narrowed, set_threads
from ..own_modules import Imports
from ..yardsticks.compare_designs import DesignSettings, run_designs


@dataclass(frozen=True, kw_only=True)
class Designs(DesignSettings):
    """Compare static networks by three methods, DeepMAD, NViT and evolution: what they reach and what they take.

    For example:

        prance designs --out runs/designs
        prance designs --out runs/designs --checkpoint runs/supernet --seeds 0 --num-subnets 600 --images 4096
        prance designs --out runs/designs --networks runs/small-0.4 runs/small-0.5
    """

    out: Path
    """Folder for designs.json."""
    threads: Threads = 1
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_designs(narrowed(self, DesignSettings), self.out)
