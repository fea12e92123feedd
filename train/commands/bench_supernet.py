"""`prance bench-supernet`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Device, Threads, check_file, narrowed, set_threads
from ..own_modules import Imports
from ..timing.supernets import SupernetBenchSettings, run_bench_supernet


@dataclass(frozen=True, kw_only=True)
class BenchSupernet(SupernetBenchSettings):
    """Time a step of supernet training beside a plain training step of the same network.

    For example:

        prance bench-supernet
        prance bench-supernet --source timm:vit_small_patch14_dinov2 --img-size 112 --batch-size 192 --device cuda
    """

    out: Path | None = None
    """JSON file for the figures."""
    device: Device = "cpu"
    threads: Threads = 1
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        check_file(self.out, ".json")
        set_threads(self.threads)
        run_bench_supernet(narrowed(self, SupernetBenchSettings), self.device, self.out)
