"""`prance order`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..networks.ordering import OrderSettings, run_order
from ..options import Threads, narrowed, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Order(OrderSettings):
    """Sort a supernet's units by importance, so that narrow subnets hold the best of them.

    The full network stays the same function. For example:

        prance order --supernet runs/deit --dataset pictures --out runs/ordered
        prance order --supernet runs/deit --dataset pictures --ablate-images 256 --out runs/ordered
    """

    out: Path
    """Folder for the sorted supernet, the permutation (order.safetensors) and the report (importance.json)."""
    threads: Threads = 1
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_order(narrowed(self, OrderSettings), self.out)
