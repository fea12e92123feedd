"""Arguments of `prance tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import Device, Threads, set_threads


@dataclass
class Tune:
    """Search the hyper-parameters of a Stable-Baselines3 algorithm with Optuna; the best become a preset.

    Every trial trains an agent and is judged by its mean return on all validation images. Needs
    `pip install 'prance-env[tune]'`.

    For example:

        prance tune --algo sac --trials 40 --out runs/tune-sac
        prance tune --algo sac --trials 60 --out runs/tune-sac --resume
        prance train agent --algo sac --conf-file runs/tune-sac/best.yml --out runs/sac
    """

    algo: Literal["ppo", "a2c", "sac", "td3", "tqc", "trpo"]
    """Algorithm; tqc and trpo need `pip install 'prance-env[contrib]'`."""
    out: Path
    """Folder for best.yml, trials.csv and Optuna's journal."""
    trials: int = 40
    """Hyper-parameters to try, the preset's first."""
    total_timesteps: int = 100_000
    """Decisions in a trial, three an image."""
    evaluations: int = 4
    """How often a trial is judged; what is behind is given up halfway."""
    startup_trials: int = 10
    """Trials drawn at random, before the sampler learns from them."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    checkpoint: str | None = None
    """Folder with the supernet; the bundled one if not given."""
    observation: Literal["cls", "cls_only", "constant", "key_mean"] = "cls"
    """What the agent sees."""
    n_envs: int | None = None
    """Images at a time; the preset's if not given."""
    macs_weight: float = 0.05
    """Price of all MACs of the full network, in accuracy."""
    conf_file: str | None = None
    """YAML file of hyper-parameters to begin with, in rl-zoo's format; this package's preset if not given."""
    ranges: str | None = None
    """YAML file with what to search; this package's if not given."""
    seed: int = 0
    """Fixes everything."""
    resume: bool = False
    """Go on with the search in --out, also with more --trials."""
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        from ..policies.tune import BEST, TuneSettings, tune

        set_threads(self.threads)
        settings = TuneSettings(
            algo=self.algo,
            trials=self.trials,
            total_timesteps=self.total_timesteps,
            evaluations=self.evaluations,
            startup_trials=self.startup_trials,
            env=self.env,
            checkpoint=self.checkpoint,
            observation=self.observation,
            n_envs=self.n_envs,
            macs_weight=self.macs_weight,
            seed=self.seed,
            device=self.device,
            conf_file=self.conf_file,
            ranges=self.ranges,
        )
        study = tune(settings, self.out, self.resume)
        print(f"Best mean return on validation images: {study.best_value:.4f}; preset: {self.out / BEST}")
