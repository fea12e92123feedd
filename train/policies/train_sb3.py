"""Training with an algorithm of Stable-Baselines3, interruptible and resumable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.protocol import Agent
from agents.sb3.checkpoint import load_checkpoint, save_checkpoint, save_model
from agents.sb3.hyperparams import algorithm_class, read_preset
from agents.sb3.make import make_sb3
from prance_env import make_sb3_env
from supernet.files import write_atomically

from .algorithm import ROLLOUTS_PER_CHECKPOINT, Algorithm, TrainingRun

# Off-policy algorithms have no rollouts: this many steps of all environments, a multiple of whole episodes, stand in.
OFF_POLICY_STEPS = 60


class SB3Algorithm(Algorithm):
    """One of Stable-Baselines3's or sb3-contrib's algorithms, saved as its zip files, which hold pickled objects.

    Args:
        name: Key of `agents.sb3.hyperparams.ALGORITHMS`.
    """

    suffix = ".zip"

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, name: str, conf_file: str | None, env: str) -> None:
        """Refuses hyper-parameters that the algorithm does not know, and algorithms that are not installed."""
        read_preset(self.name, conf_file, env)

    def timesteps(self, conf_file: str | None, env: str) -> int:
        """Decisions that the hyper-parameters were chosen for."""
        return read_preset(self.name, conf_file, env).n_timesteps

    def train(self, run: TrainingRun) -> Agent:
        """Trains on the CPU, whatever the device of the supernet; `metrics.jsonl` gets a row per rollout."""
        n_envs = run.n_envs or read_preset(self.name, run.conf_file, run.env).n_envs
        env = make_sb3_env(run.env, n_envs, seed=run.seed, **run.env_arguments)
        if run.resume:
            model = load_checkpoint(algorithm_class(self.name), run.last, env)
            run.forget_after(model.num_timesteps)
        else:
            model = make_sb3(self.name, env, run.seed, preset=run.conf_file, tensorboard_log=str(run.out))
        remaining = run.total_timesteps - model.num_timesteps
        # Off-policy algorithms count episodes, and would otherwise log at every fourth.
        log_interval = OFF_POLICY_STEPS // 3 * n_envs if isinstance(model, OffPolicyAlgorithm) else 1
        try:
            if remaining > 0:
                model.learn(
                    remaining,
                    callback=Checkpoints(run),
                    log_interval=log_interval,
                    progress_bar=run.progress_bar,
                    tb_log_name=self.name,
                    reset_num_timesteps=not run.resume,
                )
        except KeyboardInterrupt:
            run.say_stopped(model.num_timesteps)
            raise
        write_atomically(run.model, lambda name: save_model(model, Path(name)))
        return model

    def load(self, path: Path) -> Agent:
        """The SB3 model in a zip file; load only what you trust."""
        return algorithm_class(self.name).load(path, device="cpu")


class Checkpoints(BaseCallback):
    """Saves at rollout boundaries and starts every stretch between two checkpoints from (seed, time step) alone.

    A resumed run therefore sees the same random numbers and images as an uninterrupted one, bit for bit on the CPU.

    Args:
        run: Where to save, and the seed.
    """

    def __init__(self, run: TrainingRun) -> None:
        super().__init__()
        self.run = run
        self.rollout = 0
        self._ends: list[tuple[float, float]] = []

    def _init_callback(self) -> None:
        # SB3 calls every training step of an off-policy algorithm a rollout.
        frequency = getattr(getattr(self.model, "train_freq", None), "frequency", OFF_POLICY_STEPS)
        self.rollouts_per_row = max(1, OFF_POLICY_STEPS // frequency)

    def _on_rollout_start(self) -> None:
        if self.rollout % (self.rollouts_per_row * ROLLOUTS_PER_CHECKPOINT) == 0:
            if self.num_timesteps > 0:
                write_atomically(self.run.last, lambda name: save_checkpoint(self.model, Path(name)))
            seed = int(np.random.SeedSequence([self.run.seed, self.num_timesteps]).generate_state(1)[0] // 2)
            self.model.set_random_seed(seed)
            env = self.model.get_env()
            assert env is not None
            self.model._last_obs = env.reset()  # type: ignore[assignment]
            self.model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self.rollout += 1

    def _on_step(self) -> bool:
        self._ends += [(i["is_success"], i["macs_fraction"]) for i in self.locals["infos"] if "macs_fraction" in i]
        return True

    def _on_rollout_end(self) -> None:
        if self.rollout % self.rollouts_per_row or not self._ends:
            return
        accuracy, macs_fraction = np.mean(self._ends, axis=0)
        self._ends.clear()
        self.logger.record("rollout/accuracy", accuracy)
        self.logger.record("rollout/macs_fraction", macs_fraction)
        self.run.write_row(self.num_timesteps, accuracy=accuracy, macs_fraction=macs_fraction)
