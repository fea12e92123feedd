"""`prance prune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, narrowed, set_threads
from ..own_modules import Imports
from ..search.prune import PruneSettings, run_prune


@dataclass(frozen=True, kw_only=True)
class Prune(PruneSettings):
    """Take the least important units out of a network, wherever they are (NViT's global structural pruning).

    For example:

        prance prune --target 0.5 --out runs/pruned
        prance prune --supernet runs/supernet --dataset pictures --target 0.7 0.5 0.3 --out runs/pruned
        prance prune --supernet runs/supernet --dataset pictures --latency-table latency.json --target 0.5 \\
            --out runs/pruned
        prance train static --from runs/pruned/0.5 --dataset pictures --teacher runs/supernet --teacher-weight 1 \\
            --out runs/small
    """

    out: Path
    """Folder: of every target a folder with the network (supernet.load_static), the nearest subnet of the search space
    (TARGET-subnet.json), pruning.json and pruning.png."""
    threads: Threads = 1
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_prune(narrowed(self, PruneSettings), self.out)
