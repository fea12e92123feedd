"""`prance benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Suppress

from ..options import Effort, Threads, narrowed, set_threads
from ..own_modules import Imports
from ..yardsticks.compute import YardstickSettings
from ..yardsticks.leaderboard import BenchmarkSettings, run_benchmark


@dataclass(frozen=True, kw_only=True)
class Benchmark(YardstickSettings):
    """Make the leaderboard: train agents of several seeds, compute the yardsticks, evaluate all on the same images.

    What --out holds already is not made again: an interrupted benchmark goes on with the same command.

    With --effort small: --seeds 0 --total-timesteps 30000 --num-subnets 60 --oracle-subnets 16 --sweeps 1.

    For example:

        prance benchmark --out runs/benchmark
        prance benchmark --out runs/quick --seeds 0 1 --total-timesteps 60000 --num-subnets 100 --oracle-subnets 32
        prance benchmark --out runs/small --effort small
    """

    out: Path
    """Folder for the runs, the yardsticks, benchmark.json, benchmark.md and pareto.png."""
    preset: Literal["digits"] = "digits"
    """Which leaderboard."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One training of every agent each."""
    total_timesteps: int = 200_000
    """Decisions of one training, three an image, or four with --decide-first-group."""
    seed: int = 0
    """Fixes the yardsticks."""
    also_static: Suppress[tuple[str, ...]] = ()
    """The benchmark's own learned static policies join the static front."""
    threads: Threads = 1
    effort: Effort = "full"
    imports: Imports = ()
    same_goes_on: ClassVar[bool] = True
    small: ClassVar[str] = "--seeds 0 --total-timesteps 30000 --num-subnets 60 --oracle-subnets 16 --sweeps 1"

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        yardsticks = narrowed(self, YardstickSettings)
        run_benchmark(BenchmarkSettings.digits(self.seeds, self.total_timesteps, yardsticks), self.out)
