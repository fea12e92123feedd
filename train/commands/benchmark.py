"""Arguments of `prance benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import Threads, set_threads


@dataclass
class Benchmark:
    """Make the leaderboard: train agents of several seeds, compute the yardsticks, evaluate all on the same images.

    What --out holds already is not made again: an interrupted benchmark goes on with the same command.

    For example:

        prance benchmark --out runs/benchmark
        prance benchmark --out runs/quick --seeds 0 1 --total-timesteps 60000 --num-subnets 100 --oracle-subnets 32
    """

    out: Path
    """Folder for the runs, the yardsticks, benchmark.json, benchmark.md and pareto.png."""
    preset: Literal["digits"] = "digits"
    """Which leaderboard."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One training of every agent each."""
    total_timesteps: int = 200_000
    """Decisions of one training, three an image."""
    num_subnets: int = 600
    """Static subnets to search."""
    oracle_subnets: int = 128
    """How many of them the per-image oracle chooses among."""
    copies: int = 4
    """Copies of every image with other noise, on which the oracle chooses."""
    threads: Threads = 1

    def run(self) -> None:
        from dataclasses import replace

        from ..yardsticks.compute import YardstickSettings
        from ..yardsticks.leaderboard import BenchmarkSettings, run_benchmark

        set_threads(self.threads)
        yardsticks = YardstickSettings(
            num_subnets=self.num_subnets, oracle_subnets=self.oracle_subnets, copies=self.copies
        )
        settings = BenchmarkSettings.digits(self.seeds, self.total_timesteps)
        run_benchmark(replace(settings, yardsticks=yardsticks), self.out)
