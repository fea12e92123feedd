"""`prance bench-training`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..options import Effort, Threads, check_file, narrowed, set_threads
from ..own_modules import Imports
from ..timing.training import TrainingBenchSettings, run_bench_training


@dataclass(frozen=True, kw_only=True)
class BenchTraining(TrainingBenchSettings):
    """Train algorithms side by side: the return after equally many decisions, and decisions per second.

    With --effort small: --seeds 0 --total-timesteps 30000.

    For example:

        prance bench-training
        prance bench-training --seeds 0 1 2 3 4 --total-timesteps 400000 --out bench-training.json
        prance bench-training --effort small
    """

    out: Path | None = None
    """JSON file for the figures."""
    threads: Threads = 1
    effort: Effort = "full"
    imports: Imports = ()
    small: ClassVar[str] = "--seeds 0 --total-timesteps 30000"

    def run(self) -> None:
        """Runs the command."""
        check_file(self.out, ".json")
        set_threads(self.threads)
        run_bench_training(narrowed(self, TrainingBenchSettings), self.out)
