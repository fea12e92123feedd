"""Arguments of `prance bench-env` and `prance bench-training`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import Device, DType, Split, Threads, TokenMode, set_threads


@dataclass
class BenchEnv:
    """Time episodes in full forward passes: environment, policy and training; prefix cached or not; Gymnasium and SB3.

    For example:

        prance bench-env
        prance bench-env --supernet digits --threads 1 --repeats 9
        prance bench-env --num-images 64 --out bench-env.json
        prance bench-env --supernet prance_vit_small --device cuda --dtype bfloat16
        prance bench-env --token-mode merge
    """

    supernet: str = "prance_vit_tiny"
    """Registered supernet. Only digits has weights and images; others get random ones, which take as long."""
    checkpoint: Path | None = None
    """Folder with weights, instead of random ones."""
    num_images: int = 256
    """Images at a time."""
    repeats: int = 3
    """Timed rounds, of which the median counts."""
    token_mode: TokenMode = None
    dtype: DType = "float32"
    out: Path | None = None
    """JSON file for the figures."""
    seed: int = 0
    """Of actions, images and weights."""
    device: Device = "cpu"
    threads: Threads = 2

    def run(self) -> None:
        from ..timing.episodes import EnvBenchSettings, run_bench_env

        set_threads(self.threads)
        settings = EnvBenchSettings(
            supernet=self.supernet,
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            num_images=self.num_images,
            repeats=self.repeats,
            device=self.device,
            seed=self.seed,
            token_mode=self.token_mode,
            dtype=self.dtype,
        )
        run_bench_env(settings, self.out)


@dataclass
class BenchTraining:
    """Train algorithms side by side: the return after equally many decisions, and decisions per second.

    For example:

        prance bench-training
        prance bench-training --seeds 0 1 2 3 4 --total-timesteps 400000 --out bench-training.json
    """

    algos: tuple[str, ...] = ("ppo", "prance_ppo")
    """As in prance train agent; all are compared with the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    total_timesteps: int = 200_000
    """Decisions of one training."""
    macs_weight: float = 0.05
    """Price of all MACs of the full network."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    checkpoint: str | None = None
    """Folder with the supernet; the bundled one if not given."""
    n_envs: int | None = None
    """Images at a time; what suits each algorithm if not given."""
    split: Split = "val"
    """Images for the returns."""
    out: Path | None = None
    """JSON file for the figures."""
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        from ..policies.training import AgentTraining
        from ..timing.training import TrainingBenchSettings, run_bench_training

        set_threads(self.threads)
        training = AgentTraining(
            env=self.env,
            checkpoint=self.checkpoint,
            total_timesteps=self.total_timesteps,
            n_envs=self.n_envs,
            macs_weight=self.macs_weight,
            device=self.device,
        )
        run_bench_training(TrainingBenchSettings(training, self.algos, self.seeds, self.split), self.out)
