"""The `prance` command."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from .bench_env import BenchEnv, BenchTraining
from .benchmark import Benchmark
from .eval import Eval, Validate, Yardsticks
from .export import Export, Import
from .options import Dataset, Device, DType, Threads, TokenMode, parse_dataset, set_threads
from .tune import Tune


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

        from ..networks.loop import PRESETS, train_supernet

        set_threads(self.threads)
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
        prance train agent --out runs/agent --algo prance_ppo
        prance train agent --out runs/sac --algo sac
        prance train agent --out runs/static --algo prance_ppo --observation constant
        prance train agent --out runs/cheap --macs-weight 0.15 --total-timesteps 500000
        prance train agent --out runs/any-budget --algo prance_ppo --macs-weight 0.01 0.3 --total-timesteps 800000
        prance train agent --out runs/merge --token-mode merge
        prance train agent --out runs/mine --env Prance-Tiny-v0 --checkpoint runs/supernet --dataset /data/imagenet
        prance train agent --out runs/agent --resume
    """

    out: Path
    """Run folder."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    algo: Literal["ppo", "a2c", "sac", "td3", "tqc", "trpo", "prance_ppo"] = "ppo"
    """Stable-Baselines3's, or prance_ppo: PRANCE's, faster, and saved without pickles; tqc and trpo need
    `pip install 'prance-env[contrib]'`."""
    preset: Literal["tuned", "paper"] = "tuned"
    """Settings of prance_ppo: what learns best here, or the paper's."""
    conf_file: str | None = None
    """Hyper-parameters of a Stable-Baselines3 algorithm, a YAML file in rl-zoo's format such as `prance tune` writes;
    this package's preset if not given."""
    checkpoint: str | None = None
    """Folder with the supernet; the bundled one if not given."""
    dataset: Dataset = None
    token_mode: TokenMode = None
    dtype: DType = "float32"
    observation: Literal["cls", "cls_only", "constant", "key_mean"] = "cls"
    """What the agent sees; constant: only which decision it is, which learns one static subnet."""
    total_timesteps: int | None = None
    """Decisions, three an image; what suits the algorithm if not given."""
    n_envs: int | None = None
    """Images at a time; what suits the algorithm if not given."""
    macs_weight: float | tuple[float, float] = 0.05
    """Price of all MACs of the full network, in accuracy: a higher one gives a cheaper, less accurate agent. Two: one
    agent for all prices between them, which prance eval then chooses from."""
    seed: int = 0
    """Fixes everything."""
    resume: bool = False
    """Continue an interrupted run from its last checkpoint."""
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        from ..policies.training import AgentTraining, train_agent

        set_threads(self.threads)
        settings = AgentTraining(
            env=self.env,
            algo=self.algo,
            preset=self.preset,
            conf_file=self.conf_file,
            checkpoint=self.checkpoint,
            observation=self.observation,
            total_timesteps=self.total_timesteps,
            n_envs=self.n_envs,
            macs_weight=self.macs_weight,
            seed=self.seed,
            device=self.device,
            dataset=parse_dataset(self.dataset),
            token_mode=self.token_mode,
            dtype=self.dtype,
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
        from ..demo import run_demo

        set_threads(self.threads)
        run_demo(self.out, self.seed, self.quick, self.device)


@dataclass
class Headroom:
    """Measure on validation images what there is to win by looking: the best static subnet for all images against the
    best one for few, some and many digits.

    For example:

        prance headroom
        prance headroom --checkpoint runs/supernet-0 runs/supernet-1 --out runs/headroom
        prance headroom --token-mode merge
    """

    checkpoint: list[str] = field(default_factory=list)
    """Folders with supernets; the bundled one if none is given."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    num_subnets: int = 400
    """Static subnets to search among."""
    dataset: Dataset = None
    token_mode: TokenMode = None
    dtype: DType = "float32"
    out: Path | None = None
    """Folder for headroom.json."""
    device: Device = "cpu"
    threads: Threads = 0

    def run(self) -> None:
        from ..yardsticks.headroom import run_headroom

        set_threads(self.threads)
        run_headroom(
            [*self.checkpoint] or [None],
            self.env,
            self.num_subnets,
            self.out,
            self.device,
            parse_dataset(self.dataset),
            self.token_mode,
            self.dtype,
        )


@dataclass
class Bench:
    """Time full, static and per-image subnets against timm's ViT and ToMe; prints MACs and milliseconds side by side.

    For example:

        prance bench
        prance bench --model deit_tiny_patch16_224 --batch-size 1 16 64 256 --out bench.json
        prance bench --device cuda --dtype bfloat16 --batch-size 256
        prance bench --token-mode merge --macs-fraction 0.6 --memory
    """

    model: tuple[str, ...] = ("deit_tiny_patch16_224", "deit_small_patch16_224")
    """Models of timm."""
    batch_size: tuple[int, ...] = (64, 256)
    """Images at a time."""
    token_mode: Literal["prune", "prune_fused", "merge", "prune_merge", "tome"] = "prune"
    """How patches leave in the subnets."""
    macs_fraction: float = 0.5
    """MACs of the subnets, relative to the full network."""
    repeats: int = 5
    """Timed rounds, of which the median counts."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and images."""
    memory: bool = False
    """Also measure the peak memory of a forward pass."""
    out: Path | None = None
    """JSON file for the figures."""
    seed: int = 0
    """Of subnets and images."""
    device: Device = "cpu"
    threads: Threads = 2

    def run(self) -> None:
        from ..timing.networks import BenchSettings, run_bench

        set_threads(self.threads)
        settings = BenchSettings(
            models=self.model,
            batch_sizes=self.batch_size,
            token_mode=self.token_mode,
            macs_fraction=self.macs_fraction,
            repeats=self.repeats,
            device=self.device,
            dtype=self.dtype,
            memory=self.memory,
            seed=self.seed,
        )
        run_bench(settings, self.out)


@dataclass
class Profile:
    """Measure a supernet on this device: the lookup table of rewards that count milliseconds instead of MACs.

    For example:

        prance profile --out latency.json
        prance profile --supernet prance_vit_small --device cuda --out h100.json
        prance profile --supernet prance_vit_small --out first.json --decide-first-group

    and then reward={"cost": "latency", "latency_table": "latency.json"}.
    """

    out: Path
    """JSON file."""
    supernet: str = "digits"
    """Registered supernet; its weights do not matter."""
    checkpoint: Path | None = None
    """Folder of another one, instead."""
    batch_size: int = 256
    """Images per batch."""
    token_counts: int = 6
    """Points of the grid of token counts."""
    repeats: int = 5
    """Runs per point; the fastest counts."""
    decide_first_group: bool = False
    """Measure the first group at every size, too, for environments that decide it."""
    device: Device = "cpu"
    threads: Threads = 0

    def run(self) -> None:
        from ..timing.latency_table import run_profile

        set_threads(self.threads)
        run_profile(
            self.out,
            self.supernet,
            self.checkpoint,
            self.device,
            self.batch_size,
            self.token_counts,
            self.repeats,
            self.decide_first_group,
        )


@dataclass
class List:
    """Show the registered environments, supernets, and agents.

    For example:

        prance list
    """

    def run(self) -> None:
        from ..report.tables import print_registered

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
        | Annotated[Tune, subcommand("tune")]
        | Annotated[Eval, subcommand("eval")]
        | Annotated[Yardsticks, subcommand("yardsticks")]
        | Annotated[Benchmark, subcommand("benchmark")]
        | Annotated[Validate, subcommand("validate")]
        | Annotated[Headroom, subcommand("headroom")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Import, subcommand("import")]
        | Annotated[Bench, subcommand("bench")]
        | Annotated[BenchEnv, subcommand("bench-env")]
        | Annotated[BenchTraining, subcommand("bench-training")]
        | Annotated[Profile, subcommand("profile")]
        | Annotated[List, subcommand("list")]
    ) = field()

    def run(self) -> None:
        self.command.run()


def main() -> None:
    """Entry point: errors that a user can mend are one line, Ctrl-C is quiet."""
    args = tyro.cli(Prance, prog="prance", config=(OmitArgPrefixes, OmitSubcommandPrefixes))
    try:
        args.run()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError) as e:
        sys.exit(f"prance: {e}")


if __name__ == "__main__":
    main()
