"""`prance bench-env`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, check_file, narrowed, set_threads
from ..own_modules import Imports
from ..timing.episodes import EnvBenchSettings, run_bench_env


@dataclass(frozen=True, kw_only=True)
class BenchEnv(EnvBenchSettings):
    """Time episodes in full forward passes: environment, policy and training; prefix cached or not; Gymnasium and SB3.

    For example:

        prance bench-env
        prance bench-env --supernet digits --threads 1 --repeats 9
        prance bench-env --num-images 64 --out bench-env.json
        prance bench-env --supernet prance_vit_small --device cuda --dtype bfloat16
        prance bench-env --token-mode merge
    """

    out: Path | None = None
    """JSON file for the figures."""
    threads: Threads = 2
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        check_file(self.out, ".json")
        set_threads(self.threads)
        run_bench_env(narrowed(self, EnvBenchSettings), self.out)
