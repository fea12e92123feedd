"""`prance eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, narrowed, set_threads
from ..own_modules import Imports
from ..runs.lock import new_folder
from ..side_by_side import EvalSettings, file_names, run_eval

RUNS, MOST_LETTERS = Path("runs"), 60


@dataclass(frozen=True, kw_only=True)
class Eval(EvalSettings):
    """Run agents over every image of a split: accuracy, MACs, patches, by difficulty, with intervals and paired tests.

    An agent is a run folder of `prance train agent` or any model in it, what else saves an agent here (agent.zip, a
    .safetensors policy, a static subnet's .json, a deployed model's folder), or one of: full, random.

    For example:

        prance eval --agent full random
        prance eval --agent agent.zip full --split val --trust
        prance eval --agent runs/agent/last.zip runs/yardsticks/static-0.05.json --reward paper
        prance eval --agent runs/agent runs/constant full --controls
        prance eval --agent runs/agent --split test --out runs/agent/eval --rows parquet --latency 64
        prance eval --agent runs/agent runs/yardsticks/confidence-0.05.json --yardsticks runs/yardsticks
        prance eval --agent full --env Prance-Tiny-v0 --checkpoint runs/supernet --dataset /data/imagenet --split val
        prance eval --agent runs/any-budget --macs-weight 0.02 0.05 0.1 --out runs/any-budget/eval
        prance eval --agent runs/any-budget --target-macs 0.45
    """

    agent: list[str]
    """Agents to evaluate, side by side on the same images."""
    out: Path | None = None
    """Folder for metrics.json, comparisons.json, figures and one file of per-image rows per agent and price; a new one
    under runs, named after the agents, if not given."""
    threads: Threads = 0
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        settings = narrowed(self, EvalSettings)
        if self.out is not None or not self.agent:
            run_eval(self.agent, settings, self.out)
            return
        agents = "-".join(file_names(self.agent).values())[:MOST_LETTERS]
        with new_folder(RUNS / f"eval-{agents}-{self.split}") as out:
            run_eval(self.agent, settings, out)
