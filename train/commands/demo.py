"""`prance demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..demo import run_demo
from ..options import Device, Threads, set_threads
from ..runs.lock import only_writer


@dataclass(frozen=True)
class Demo:
    """Everything at once: train an agent on the bundled supernet, compare it, draw it. Two to four minutes.

    For example:

        prance demo
        prance demo --out my-demo --seed 1
        prance demo --quick
    """

    out: Path = Path("demo")
    """Folder for metrics.json, report.md, pareto.png, episodes.png and the agent."""
    seed: int = 0
    """Fixes everything."""
    quick: bool = False
    """A short training and search, to see that everything runs; the agent is not good."""
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        with only_writer(self.out):
            run_demo(self.out, self.seed, self.quick, self.device)
