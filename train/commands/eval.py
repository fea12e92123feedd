"""`prance eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, narrowed, set_threads
from ..side_by_side import EvalSettings, run_eval


@dataclass(frozen=True, kw_only=True)
class Eval(EvalSettings):
    """Run agents over every image of a split: accuracy, MACs, patches, by difficulty, with intervals and paired tests.

    An agent is a run folder of `prance train agent`, a file saved by an agent, or one of: full, random.

    For example:

        prance eval --agent full random
        prance eval --agent agent.zip full --split val --trust
        prance eval --agent runs/agent runs/constant full --controls
        prance eval --agent runs/agent --split test --out runs/agent/eval --rows parquet --latency 64
        prance eval --agent runs/agent runs/yardsticks/confidence-0.05.json --yardsticks runs/yardsticks
        prance eval --agent full --env Prance-Tiny-v0 --checkpoint runs/supernet --dataset /data/imagenet --split val
        prance eval --agent runs/any-budget --macs-weight 0.02 0.05 0.1 --out runs/any-budget/eval
        prance eval --agent runs/any-budget --target-macs 0.4
    """

    agent: list[str]
    """Agents to evaluate, side by side on the same images."""
    out: Path | None = None
    """Folder for metrics.json, comparisons.json, figures and one file of per-image rows per agent and price."""
    threads: Threads = 0

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_eval(self.agent, narrowed(self, EvalSettings), self.out)
