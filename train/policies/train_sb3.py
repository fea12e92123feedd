"""Training with an algorithm of Stable-Baselines3, interruptible and resumable."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.episode_means import choices_of
from agents.protocol import Agent
from agents.sb3.checkpoint import load_checkpoint, read_place, save_checkpoint, save_model
from agents.sb3.hyperparams import Preset, algorithm_class, preset_text, read_preset
from agents.sb3.make import fitted, make_sb3
from agents.sb3.place import go_to, place_of
from agents.sb3.policy_file import POLICY, save_policy
from prance_env import make_sb3_env
from supernet.files import write_text
from supernet.reading import read_yaml
from supernet.staging import staged

from ..runs.curves import forget_curves_after
from ..runs.interrupt import Interruption, deferred_interrupt
from ..runs.pace import Pace
from .algorithm import HYPERPARAMS, ROLLOUTS_PER_STRETCH, Algorithm, TrainingRun

# Off-policy algorithms have no rollouts: so many episodes of every environment stand in.
OFF_POLICY_EPISODES = 20


class SB3Algorithm(Algorithm):
    """One of Stable-Baselines3's or sb3-contrib's algorithms, saved as its zip files, which hold pickled objects.

    Args:
        name: Key of `agents.sb3.hyperparams.ALGORITHMS`.
    """

    suffix = ".zip"
    pickles = True

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, name: str, conf_file: str | None, env: str) -> None:
        """Refuses hyper-parameters that the algorithm does not know, and algorithms that are not installed."""
        read_preset(self.name, conf_file, env)

    def env_kwargs(self, conf_file: str | None, env: str) -> dict[str, Any]:
        """What the file says; those of this package's own presets are the defaults of a run anyway."""
        return {} if conf_file is None else read_preset(self.name, conf_file, env).env_kwargs

    def timesteps(self, conf_file: str | None, env: str) -> int:
        """Decisions that the hyper-parameters were chosen for."""
        return read_preset(self.name, conf_file, env).n_timesteps

    def train(self, run: TrainingRun) -> Agent:
        """Trains on the CPU, whatever the device of the supernet; `metrics.jsonl` gets a row per rollout."""
        preset = read_preset(self.name, run.conf_file, run.env)
        n_envs = run.n_envs or preset.n_envs
        env = make_sb3_env(run.env, n_envs, seed=run.seed, **run.env_arguments)
        if run.resume:
            model = load_checkpoint(algorithm_class(self.name), run.last, env, str(run.out))
            place = read_place(run.last)
            run.forget_after(model.num_timesteps)
            forget_curves_after(run.out, self.name, model.num_timesteps)
        else:
            model = make_sb3(self.name, env, run.seed, preset=run.conf_file, tensorboard_log=str(run.out))
            place = None
            own = Preset(fitted(preset.hyperparams, env, preset.n_envs / n_envs), n_envs, run.total_timesteps)
            write_text(run.out / HYPERPARAMS, preset_text(own, {"reward": run.env_arguments["reward"]}))
        remaining = run.total_timesteps - model.num_timesteps
        if remaining <= 0:
            run.say_done(model.num_timesteps)
            if not run.model.exists():
                with staged(run.out) as folder:
                    _save_trained(model, folder, run, preset)
            return model
        # Off-policy algorithms would log when they have counted so many episodes, at other steps than our rows.
        log_interval = sys.maxsize if isinstance(model, OffPolicyAlgorithm) else 1
        with deferred_interrupt() as interrupted:

            def save_best(folder: Path) -> None:
                _save_trained(model, folder, run, preset)

            checkpoints = Checkpoints(run, interrupted, save_best, place)
            model.learn(
                remaining,
                callback=checkpoints,
                log_interval=log_interval,
                progress_bar=run.progress_bar,
                tb_log_name=self.name,
                reset_num_timesteps=not run.resume,
            )
            best = run.is_best(model, model.num_timesteps, model.logger, at_end=True)
            with run.saving(model.num_timesteps, save_best if best else None) as folder:
                save_checkpoint(model, folder / run.last.name, checkpoints.place())
                _save_trained(model, folder, run, preset)
            interrupted.heed()
        return model

    def load(self, path: Path) -> Agent:
        """The SB3 model in a zip file; load only what you trust."""
        return algorithm_class(self.name).load(path, device="cpu")


def _save_trained(model: BaseAlgorithm, folder: Path, run: TrainingRun, preset: Preset) -> None:
    """The model in SB3's format, and what acts of it without pickles."""
    save_model(model, folder / run.model.name)
    save_policy(model, folder / POLICY, preset.hyperparams.get("policy_kwargs") or {})


class Checkpoints(BaseCallback):
    """Saves at rollout boundaries, when it is time or somebody wants to stop.

    A resumed run goes on with the random numbers and images of an uninterrupted one, bit for bit on the CPU, wherever
    it was interrupted. Every stretch of rollouts begins anew from (seed, time step).

    Args:
        run: Where to save, how often, and the seed.
        interrupted: Whether somebody wants to stop.
        save_best: Writes the agent to a folder, if it is the best so far.
        place: Where to go on from.
    """

    def __init__(
        self,
        run: TrainingRun,
        interrupted: Interruption,
        save_best: Callable[[Path], None],
        place: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.run, self.interrupted, self.pace = run, interrupted, Pace(run.save_freq)
        self._save_best = save_best
        self._resumed_at = place
        self.rollout = 0
        self._ends: list[list[float]] = []
        self._names: list[str] = []

    def _init_callback(self) -> None:
        self._space = self.training_env.get_attr("settings")[0].config().space
        # SB3 calls every training step of an off-policy algorithm a rollout.
        frequency = getattr(getattr(self.model, "train_freq", None), "frequency", None)
        self.rollouts_per_row = 1 if frequency is None else _rollouts_per_row(frequency, self._space.num_decisions)

    def _on_training_start(self) -> None:
        if self._resumed_at is None:
            own = read_yaml(self.run.out / HYPERPARAMS, dict[str, Any], "begin another run")["default"]
            self.run.describe(self.logger, **own)

    def place(self) -> dict[str, Any]:
        """Where the training stands between two rollouts."""
        return {**place_of(self.model), "rollout": self.rollout, "ends": self._ends, "names": self._names}

    def _on_rollout_start(self) -> None:
        if self._resumed_at is not None:
            go_to(self.model, self._resumed_at)
            self.rollout, self._ends, self._names = (self._resumed_at[key] for key in ("rollout", "ends", "names"))
            self._resumed_at = None
        else:
            self._save_if_due()
        if self.rollout % (self.rollouts_per_row * ROLLOUTS_PER_STRETCH) == 0:
            seed = int(np.random.SeedSequence([self.run.seed, self.num_timesteps]).generate_state(1)[0] // 2)
            self.model.set_random_seed(seed)
            env = self.model.get_env()
            assert env is not None
            self.model._last_obs = env.reset()  # type: ignore[assignment]
            self.model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self.rollout += 1

    def _save_if_due(self) -> None:
        best = self.run.is_best(self.model, self.num_timesteps, self.logger)
        if best or self.interrupted() or self.pace.due():
            with self.run.saving(self.num_timesteps, self._save_best if best else None) as folder:
                save_checkpoint(self.model, folder / self.run.last.name, self.place())
        if self.interrupted():
            self.run.say_stopped(self.num_timesteps)
            self.interrupted.heed()

    def _on_step(self) -> bool:
        ended = [info for info in self.locals["infos"] if "macs_fraction" in info]
        if ended:
            finals = {key: np.array([info[key] for info in ended]) for key in ended[0] if key != "terminal_observation"}
            numbers = {"rollout/accuracy": finals["is_success"], "rollout/macs_fraction": finals["macs_fraction"]}
            numbers |= choices_of(finals, self._space)
            self._names = [*numbers]
            self._ends += np.stack([*numbers.values()], axis=1).tolist()
        return True

    def _on_rollout_end(self) -> None:
        if self.rollout % self.rollouts_per_row or not self._ends:
            return
        accuracy, macs_fraction = self._record()
        self._ends.clear()
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.dump_logs()  # others do that themselves after every rollout
        self.run.write_row(self.num_timesteps, accuracy=accuracy, macs_fraction=macs_fraction)

    def _record(self) -> tuple[float, float]:
        """Accuracy and MACs of the episodes since the last row, which SB3's logger is told."""
        means = np.mean(self._ends, axis=0)
        for name, value in zip(self._names, means, strict=True):
            self.logger.record(name, value)
        return means[0], means[1]


def _rollouts_per_row(frequency: int, num_decisions: int) -> int:
    """Rollouts of an off-policy algorithm in a row, which ends with whole episodes; at least one.

    Args:
        frequency: Steps in a rollout.
        num_decisions: Steps in an episode.
    """
    whole = math.lcm(frequency, num_decisions)
    return whole // frequency * max(1, OFF_POLICY_EPISODES * num_decisions // whole)
