"""The `prance` command."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

Device = Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")]
Threads = Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")]


@dataclass
class SupernetArgs:
    """Stage 1: train the supernet of the Digits task.

    For example:

        prance train supernet --preset digits --out runs/supernet
        prance train supernet --preset digits-quick --out runs/quick
        prance train supernet --preset digits --out runs/supernet --resume
    """

    out: Path
    """Run folder."""
    preset: Literal["digits", "digits-quick"] = "digits"
    """digits: the bundled supernet's recipe; digits-quick: the same in a few minutes."""
    seed: int = 0
    """Fixes everything."""
    steps: int | None = None
    """Optimiser steps, instead of the preset's."""
    resume: bool = False
    """Continue an interrupted run; the result is the same as without interruption."""
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        from dataclasses import replace

        from .supernet import PRESETS, train_supernet

        _set_threads(self.threads)
        settings = replace(PRESETS[self.preset], seed=self.seed)
        if self.steps is not None:
            settings = replace(settings, steps=self.steps)
        train_supernet(settings, self.out, self.device, self.resume)
        print(f"Supernet written to {self.out}; use it with --checkpoint {self.out}")


@dataclass
class AgentArgs:
    """Stage 2: train an agent on a frozen supernet.

    For example:

        prance train agent --out runs/agent
        prance train agent --out runs/cheap --macs-weight 0.15 --total-timesteps 500000
        prance train agent --out runs/agent --resume
    """

    out: Path
    """Run folder."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    algo: Literal["ppo"] = "ppo"
    """Stable-Baselines3 algorithm."""
    checkpoint: str | None = None
    """Folder with the supernet; the bundled one if not given."""
    observation: Literal["cls", "cls_only", "constant"] = "cls"
    """What the agent sees."""
    total_timesteps: int = 400_000
    """Decisions, three an image."""
    n_envs: int = 256
    """Images at a time."""
    macs_weight: float = 0.05
    """Price of all MACs of the full network, in accuracy: a higher one gives a cheaper, less accurate agent."""
    seed: int = 0
    """Fixes everything."""
    resume: bool = False
    """Continue an interrupted run from its last checkpoint."""
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        from .agent import AgentTraining, train_agent

        _set_threads(self.threads)
        settings = AgentTraining(
            env=self.env,
            algo=self.algo,
            checkpoint=self.checkpoint,
            observation=self.observation,
            total_timesteps=self.total_timesteps,
            n_envs=self.n_envs,
            macs_weight=self.macs_weight,
            seed=self.seed,
            device=self.device,
        )
        train_agent(settings, self.out, self.resume)
        print(f"Agent written to {self.out}; evaluate it with: prance eval --agent {self.out}")


@dataclass
class Train:
    """Train a supernet or an agent."""

    stage: Annotated[SupernetArgs, subcommand("supernet")] | Annotated[AgentArgs, subcommand("agent")]

    def run(self) -> None:
        self.stage.run()


@dataclass
class Eval:
    """Run agents over every image of a split: accuracy, MACs, patches, by difficulty.

    An agent is a run folder of `prance train agent`, a file saved by an agent, or one of: full, random.

    For example:

        prance eval --agent full random
        prance eval --agent runs/agent --split test --out runs/agent/eval
    """

    agent: list[str]
    """Agents to evaluate, side by side."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    split: Literal["train", "val", "test"] = "test"
    """Images."""
    checkpoint: str | None = None
    """Folder with the supernet; the bundled one if not given."""
    out: Path | None = None
    """Folder for metrics.json and one CSV of per-image rows per agent."""
    seed: int = 0
    """Of the random agent."""
    device: Device = "cpu"
    threads: Threads = 0

    def run(self) -> None:
        from .report import run_eval

        _set_threads(self.threads)
        run_eval(self.agent, self.env, self.split, self.checkpoint, self.out, self.seed, self.device)


@dataclass
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
    threads: Threads = 2

    def run(self) -> None:
        from .demo import run_demo

        _set_threads(self.threads)
        run_demo(self.out, self.seed, self.quick, self.device)


@dataclass
class Headroom:
    """Measure on validation images what there is to win by looking: the best static subnet for all images against the
    best one for few, some and many digits.

    For example:

        prance headroom
        prance headroom --checkpoint runs/supernet-0 runs/supernet-1 --out runs/headroom
    """

    checkpoint: list[str] = field(default_factory=list)
    """Folders with supernets; the bundled one if none is given."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    num_subnets: int = 400
    """Static subnets to search among."""
    out: Path | None = None
    """Folder for headroom.json."""
    device: Device = "cpu"
    threads: Threads = 0

    def run(self) -> None:
        from .headroom import run_headroom

        _set_threads(self.threads)
        run_headroom([*self.checkpoint] or [None], self.env, self.num_subnets, self.out, self.device)


@dataclass
class Export:
    """Write one subnet as files that run without its supernet: ONNX, torch.export's .pt2, or safetensors.

    Every file is run on random images and compared with the supernet before it is kept. Networks take float images
    that are normalised already, with the mean and std in static.json beside them.

    For example:

        prance export --out exported
        prance export --out exported --format onnx torch safetensors --subnet min
        prance export --out exported --keep-rate 0.7 --embed-dim 48 --mlp-ratio 1
        prance export --out exported --supernet runs/supernet --subnet subnet.json --uint8
    """

    out: Path
    """Folder for model.onnx, model.pt2, model.safetensors and static.json."""
    format: tuple[Literal["onnx", "torch", "safetensors"], ...] = ("onnx",)
    """What to write; onnx needs the extra prance-env[export]. supernet.load_static loads safetensors."""
    supernet: str = "digits"
    """Registered name, or a folder written by save_pretrained; digits is the bundled one."""
    subnet: str | None = None
    """full, min, a JSON file or JSON text of one subnet (SubnetConfig.to_json), or a static agent's file."""
    keep_rate: tuple[float, ...] = ()
    """Instead of --subnet: keep rate of every decision, or one for each stage of the token mode; 1 if not given."""
    embed_dim: int | None = None
    """Instead of --subnet: width of every decided block; the full one if not given."""
    mlp_ratio: float | None = None
    """Instead of --subnet: hidden width of every decided MLP over its width; the full one if not given."""
    uint8: bool = False
    """ONNX and torch files take uint8 images and normalise them."""
    seed: int = 0
    """Of the random images."""
    threads: Threads = 0

    def run(self) -> None:
        from .export import run_export

        _set_threads(self.threads)
        run_export(
            self.out,
            self.format,
            self.supernet,
            self.subnet,
            self.keep_rate,
            self.embed_dim,
            self.mlp_ratio,
            self.uint8,
            self.seed,
        )


@dataclass
class ImportTimm:
    """Make a plain ViT of timm elastic.

    For example:

        prance import timm deit_small_patch16_224 --pretrained --out runs/deit
    """

    model: Positional[str]
    """Name of a model of timm."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    pretrained: bool = False
    """Download timm's weights; otherwise they are random."""

    def run(self) -> None:
        from .importing import import_timm

        import_timm(self.model, self.out, self.pretrained)


@dataclass
class ImportPrance:
    """Read a meta-network of PRANCE's authors.

    For example:

        prance import prance supernet-tiny.pth --out runs/prance-tiny
        prance import prance supernet-tiny.pth --out runs/prance-merge --token-mode merge
    """

    checkpoint: Positional[Path]
    """Their file, or its weights as safetensors."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    token_mode: Literal["prune", "merge", "prune_merge"] = "prune"
    """How patches leave."""

    def run(self) -> None:
        from .importing import import_prance

        import_prance(self.checkpoint, self.out, self.token_mode)


@dataclass
class Import:
    """Make a supernet out of weights from elsewhere.

    For example:

        prance import timm deit_small_patch16_224 --pretrained --out runs/deit
        prance import prance supernet-tiny.pth --out runs/prance-tiny
    """

    source: Annotated[ImportTimm, subcommand("timm")] | Annotated[ImportPrance, subcommand("prance")]

    def run(self) -> None:
        self.source.run()


@dataclass
class List:
    """Show the registered environments, supernets, and agents.

    For example:

        prance list
    """

    def run(self) -> None:
        from .report import print_registered

        print_registered()


@dataclass
class Prance:
    """Vision Transformers whose inference is a reinforcement-learning environment.

    For example:

        prance demo
        prance list
        prance train agent --out runs/agent
        prance eval --agent runs/agent full random
    """

    command: (
        Annotated[Demo, subcommand("demo")]
        | Annotated[Train, subcommand("train")]
        | Annotated[Eval, subcommand("eval")]
        | Annotated[Headroom, subcommand("headroom")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Import, subcommand("import")]
        | Annotated[List, subcommand("list")]
    ) = field()

    def run(self) -> None:
        self.command.run()


def _set_threads(threads: int) -> None:
    import torch

    if threads < 0:
        raise ValueError(f"--threads {threads} must be 0 or more.")
    if threads:
        torch.set_num_threads(threads)


def main() -> None:
    """Entry point: errors that a user can mend are one line, Ctrl-C is quiet."""
    args = tyro.cli(Prance, prog="prance", config=(OmitArgPrefixes, OmitSubcommandPrefixes))
    try:
        args.run()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, FileNotFoundError, FileExistsError) as e:
        sys.exit(f"prance: {e}")


if __name__ == "__main__":
    main()
