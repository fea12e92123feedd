"""Arguments of `prance eval`, `yardsticks` and `validate`: judging agents, by what, and judging the judgement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .options import Dataset, Precision, Split, TokenMode, parse_dataset, set_threads


@dataclass
class Eval:
    """Run agents over every image of a split: accuracy, MACs, patches, by difficulty, with intervals and paired tests.

    An agent is a run folder of `prance train agent`, a file saved by an agent, or one of: full, random.

    For example:

        prance eval --agent full random
        prance eval --agent runs/agent runs/constant full --controls
        prance eval --agent runs/agent --split test --out runs/agent/eval --rows parquet --latency 64
        prance eval --agent runs/agent runs/yardsticks/confidence-0.05.json --yardsticks runs/yardsticks
        prance eval --agent full --env Prance-Tiny-v0 --checkpoint runs/supernet --dataset /data/imagenet --split val
        prance eval --agent runs/any-budget --macs-weight 0.02 0.05 0.1 --out runs/any-budget/eval
        prance eval --agent runs/any-budget --target-macs 0.4
    """

    agent: list[str]
    """Agents to evaluate, side by side on the same images."""
    env: str | None = None
    """Environment id; that of the trained agents, or Prance-Digits-v0, if not given."""
    split: Split = "test"
    """Images."""
    checkpoint: str | None = None
    """Folder with the supernet; that of the trained agents, or the bundled one, if not given."""
    dataset: Annotated[
        Dataset, arg(help="Images, as in prance train agent; those of the trained agents if not given.")
    ] = None
    token_mode: Annotated[TokenMode, arg(help="How patches leave; as in the training of the agents if not given.")] = (
        None
    )
    dtype: Precision | None = None
    """Precision of the supernet; that of the trained agents, or float32, if not given."""
    macs_weight: tuple[float, ...] = ()
    """For agents that were trained with a range of prices: those to evaluate at; seven that span the range if none."""
    target_macs: float | None = None
    """Likewise, instead: a budget relative to the full network, whose price is looked for on validation images."""
    out: Path | None = None
    """Folder for metrics.json, comparisons.json, figures and one file of per-image rows per agent and price."""
    rows: Literal["csv", "parquet"] = "csv"
    """Format of the rows; parquet needs the extra prance-env[parquet]."""
    latency: int | None = None
    """Images at a time for measured milliseconds, from pixels to logits with all looking and deciding."""
    controls: bool = False
    """Two more lines per agent that looks: with the observations of other images, and its mean action for all."""
    yardsticks: Path | None = None
    """Folder that `prance yardsticks` wrote: what every agent saves, and what share of what there is to win."""
    seed: int = 0
    """Of the random agent, the intervals and the shuffling."""
    device: Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")] = "cpu"
    threads: Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")] = 0

    def run(self) -> None:
        from ..evaluate.side_by_side import EvalSettings, run_eval

        set_threads(self.threads)
        settings = EvalSettings(
            self.env,
            self.split,
            self.checkpoint,
            self.seed,
            self.device,
            self.controls,
            self.rows,
            yardsticks=None if self.yardsticks is None else str(self.yardsticks),
            dataset=parse_dataset(self.dataset),
            token_mode=self.token_mode,
            dtype=self.dtype,
            macs_weight=self.macs_weight,
            target_macs=self.target_macs,
            latency=self.latency,
        )
        run_eval(self.agent, settings, self.out)


@dataclass
class Yardsticks:
    """Compute what agents are measured by: the best static subnets for all images and for every difficulty, the tuned
    confidence heuristic, and the per-image oracle. All are chosen on one split and judged on another.

    For example:

        prance yardsticks --out runs/yardsticks
        prance yardsticks --out runs/yardsticks --checkpoint runs/supernet --num-subnets 1000
        prance yardsticks --out runs/yardsticks --also-static runs/constant-0 runs/constant-1
        prance eval --agent runs/agent --yardsticks runs/yardsticks
    """

    out: Path
    """Folder for the agents, yardsticks.json and outcomes.npz."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    choose_on: Split = "val"
    """Images on which everything is searched and tuned."""
    split: Split = "test"
    """Images on which everything is judged."""
    checkpoint: str | None = None
    """Folder with the supernet; the bundled one if not given."""
    num_subnets: int = 600
    """Static subnets to search."""
    oracle_subnets: int = 128
    """How many of them the per-image oracle chooses among."""
    copies: int = 4
    """Copies of every image with other noise, on which the oracle chooses."""
    also_static: tuple[str, ...] = ()
    """Agents that join the static front, such as those of `prance train agent --observation constant`."""
    seed: int = 0
    """Fixes everything."""
    device: Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")] = "cpu"
    threads: Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")] = 0

    def run(self) -> None:
        from dataclasses import asdict

        from ..yardsticks.compute import YardstickSettings, run_yardsticks

        set_threads(self.threads)
        given = {k: v for k, v in asdict(self).items() if k not in ("out", "threads")}
        run_yardsticks(YardstickSettings(**given), self.out)


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
    """Environment id; what settings.json beside the file says if not given, likewise the next five."""
    split: Split | None = None
    """Images."""
    checkpoint: str | None = None
    """Folder with the supernet."""
    dataset: Annotated[Dataset, arg(help="Images, as in prance train agent.")] = None
    token_mode: Annotated[TokenMode, arg(help="How patches leave.")] = None
    dtype: Precision | None = None
    """Precision of the supernet."""
    device: Annotated[str, arg(help="Torch device, that of the evaluation.")] = "cpu"
    threads: Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")] = 0

    def run(self) -> None:
        from ..evaluate.replay import run_validate

        set_threads(self.threads)
        given = {
            "env": self.env,
            "split": self.split,
            "checkpoint": self.checkpoint,
            "dataset": parse_dataset(self.dataset),
            "token_mode": self.token_mode,
            "dtype": self.dtype,
        }
        run_validate(self.file, given, self.device)
