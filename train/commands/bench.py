"""`prance bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, check_file, narrowed, set_threads
from ..own_modules import Imports
from ..timing.networks import BenchSettings, run_bench


@dataclass(frozen=True, kw_only=True)
class Bench(BenchSettings):
    """Time full, static and per-image subnets against timm's ViT and ToMe; prints MACs and milliseconds side by side.

    For example:

        prance bench
        prance bench --model deit_tiny_patch16_224 --batch-size 1 16 64 256 --out bench.json
        prance bench --device cuda --dtype bfloat16 --batch-size 256
        prance bench --token-mode merge --macs-fraction 0.6 --memory
    """

    out: Path | None = None
    """JSON file for the figures."""
    threads: Threads = 2
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        check_file(self.out, ".json")
        set_threads(self.threads)
        run_bench(narrowed(self, BenchSettings), self.out)
