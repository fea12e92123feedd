"""Arguments of `prance eval` and `prance validate`: judging agents, and judging the judgement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .cli_options import Split, set_threads


@dataclass
class Eval:
    """Run agents over every image of a split: accuracy, MACs, patches, by difficulty, with intervals and paired tests.

    An agent is a run folder of `prance train agent`, a file saved by an agent, or one of: full, random.

    For example:

        prance eval --agent full random
        prance eval --agent runs/agent runs/constant full --controls
        prance eval --agent runs/agent --split test --out runs/agent/eval --rows parquet
        prance eval --agent runs/any-budget --macs-weight 0.02 0.05 0.1 --out runs/any-budget/eval
        prance eval --agent runs/any-budget --target-macs 0.4
    """

    agent: list[str]
    """Agents to evaluate, side by side on the same images."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    split: Split = "test"
    """Images."""
    checkpoint: str | None = None
    """Folder with the supernet; that of the trained agents, or the bundled one, if not given."""
    macs_weight: tuple[float, ...] = ()
    """For agents that were trained with a range of prices: those to evaluate at; seven that span the range if none."""
    target_macs: float | None = None
    """Likewise, instead: a budget relative to the full network, whose price is looked for on validation images."""
    out: Path | None = None
    """Folder for metrics.json, comparisons.json, pareto.png and one file of per-image rows per agent and price."""
    rows: Literal["csv", "parquet"] = "csv"
    """Format of the rows; parquet needs the extra prance-env[parquet]."""
    controls: bool = False
    """Two more lines per agent that looks: with the observations of other images, and its mean action for all."""
    seed: int = 0
    """Of the random agent, the intervals and the shuffling."""
    device: Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")] = "cpu"
    threads: Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")] = 0

    def run(self) -> None:
        from .run_eval import EvalSettings, run_eval

        set_threads(self.threads)
        settings = EvalSettings(
            self.env,
            self.split,
            self.checkpoint,
            self.seed,
            self.device,
            self.controls,
            self.rows,
            macs_weight=self.macs_weight,
            target_macs=self.target_macs,
        )
        run_eval(self.agent, settings, self.out)


@dataclass
class Validate:
    """Play the recorded actions of an evaluation again; predictions and MACs must come out the same.

    For example:

        prance validate runs/agent/eval/agent.csv
        prance validate rows.parquet --split val --checkpoint runs/supernet
    """

    file: Positional[Path]
    """Rows that `prance eval --out` wrote."""
    env: str | None = None
    """Environment id; what settings.json beside the file says if not given, likewise the next two."""
    split: Split | None = None
    """Images."""
    checkpoint: str | None = None
    """Folder with the supernet."""
    device: Annotated[str, arg(help="Torch device, that of the evaluation.")] = "cpu"
    threads: Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")] = 0

    def run(self) -> None:
        from .validate import run_validate

        set_threads(self.threads)
        run_validate(self.file, self.env, self.split, self.checkpoint, self.device)
