"""What an algorithm is that trains agents: the class to derive from, and what it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.logger import Logger

from agents.protocol import Agent
from prance_env.settings import EnvArguments, EnvSettings
from supernet.staging import staged

from ..runs.pace import SAVE_FREQ
from ..runs.progress import Progress
from ..runs.rows import ROWS, RowLog
from .board import write_hparams, writer_of
from .validation import Validation, begin_best

HYPERPARAMS = "hyperparams.yml"
"""Name of a run's own hyper-parameters in its folder, for algorithms that take files of them."""
ROLLOUTS_PER_STRETCH = 10
"""After so many rollouts, images and random numbers are drawn anew from the seed and the time step."""


@dataclass(frozen=True)
class TrainingRun:
    """One training, as `train_agent` asks an algorithm for it.

    Attributes:
        env: Environment id.
        env_arguments: Arguments of the environment that differ from the id's own, reward and observation included.
        total_timesteps: Decisions, over the whole run.
        n_envs: Images at a time; None: what suits the algorithm.
        preset: Name of the algorithm's settings.
        conf_file: File with the algorithm's hyper-parameters, instead.
        seed: Fixes everything.
        device: Torch device of the supernet.
        out: Run folder, which exists.
        last: Checkpoint to write now and then, and to continue from; a file or a folder, as the algorithm likes.
        model: Where the trained agent is written, when it is done.
        resume: Whether to continue from `last`, which exists then.
        progress_bar: Whether to show one.
        save_freq: Seconds between two checkpoints.
        advice: What else to tell whoever stops it; the command itself says how it goes on.
        progress: How far the run is, and what it has cost.
        validation: Judges the agent now and then; ask `validation.due` between two rollouts. None: nobody does.
        described: The settings of the run by name, for TensorBoard.
    """

    env: str
    env_arguments: EnvArguments
    total_timesteps: int
    n_envs: int | None
    preset: str
    conf_file: str | None
    seed: int
    device: str
    out: Path
    last: Path
    model: Path
    resume: bool = False
    progress_bar: bool = True
    save_freq: float = SAVE_FREQ
    advice: str = ""
    progress: Progress = field(default_factory=Progress)
    validation: Validation | None = None
    described: Mapping[str, Any] = field(default_factory=dict)

    def env_settings(self) -> EnvSettings:
        """The settings of the environment that the agent acts in."""
        return EnvSettings.from_arguments(self.env_kwargs())

    def env_kwargs(self) -> dict[str, Any]:
        """All arguments of the environment, those of its id included."""
        return {**gym.spec(self.env.removeprefix("prance_env:")).kwargs, **self.env_arguments}

    @property
    def rows(self) -> RowLog:
        """The log `metrics.jsonl`."""
        return RowLog(self.out / ROWS, "timesteps")

    def write_row(self, timesteps: int, **values: float) -> None:
        """Adds a row to `metrics.jsonl`."""
        self.rows.write({"timesteps": timesteps, **values})

    def forget_after(self, timesteps: int) -> None:
        """Drops those rows of `metrics.jsonl`, and those validations, that a resumed run repeats."""
        self.rows.forget_after(timesteps)
        if self.validation is not None:
            self.validation.resume(timesteps)

    def describe(self, logger: Logger | None, **hyperparams: Any) -> None:
        """Shows the settings of a run that begins in TensorBoard, with what the algorithm made of them."""
        metrics = ["rollout/ep_rew_mean", "rollout/accuracy", "rollout/macs_fraction"]
        if self.validation is not None and self.validation.every:
            metrics += ["eval/return", "eval/accuracy", "eval/macs_fraction"]
        write_hparams(writer_of(logger), {**hyperparams, **self.described}, metrics)

    def is_best(self, agent: Agent, timesteps: int, logger: Logger | None, at_end: bool = False) -> bool:
        """Judges the agent if that is due; whether it is the best so far, which belongs into the next checkpoint.

        Args:
            agent: Between two rollouts.
            timesteps: Decisions that it has learned from.
            logger: Of the training.
            at_end: Whether nothing more is learned.
        """
        validation = self.validation
        if validation is None or not (validation.due_at_end if at_end else validation.due)(timesteps):
            return False
        return validation.is_best(agent, timesteps, logger)

    @contextmanager
    def saving(self, timesteps: int, save_best: Callable[[Path], None] | None = None) -> Iterator[Path]:
        """Replaces the checkpoint, and at the end of the run the model, all at once.

        Args:
            timesteps: Decisions so far.
            save_best: Writes the agent to a folder, if it is the best so far.

        Yields:
            A hidden folder; what is written there under the names of `last` and `model` takes their places when the
            block ends, whatever happens to the process meanwhile.
        """
        self.rows.flush()
        if self.validation is not None:
            self.validation.log.flush()
        with staged(self.out) as folder:
            yield folder
            if save_best is not None:
                save_best(begin_best(self.out, folder))
            self.progress.write(folder, timesteps, self.total_timesteps)

    def say_stopped(self, timesteps: int) -> None:
        """Tells the user how to go on after Ctrl-C, when the checkpoint is written."""
        also = f"; {self.advice}" if self.advice else ""
        print(f"\nStopped at {timesteps} of {self.total_timesteps} steps{also}.")

    def say_done(self, timesteps: int) -> None:
        """Tells the user why nothing is trained."""
        print(f"{self.out} has {timesteps} of {self.total_timesteps} steps already; more --total-timesteps extend it.")


class Algorithm(ABC):
    """How agents are trained and loaded; derive from it, and `register_algorithm` makes it known by a name.

    Attributes:
        suffix: Suffix of the files of saved agents, such as ".zip"; empty for folders.
        presets: Names of settings that `preset` may have, the default first.
        pickles: Whether its files can run code when they are read, so that those of others need the user's trust.
    """

    suffix: str = ""
    pickles: bool = False
    presets: tuple[str, ...] = ("tuned",)

    def check(self, name: str, conf_file: str | None, env: str) -> None:
        """Refuses settings that the algorithm cannot train with, before anything is written.

        Args:
            name: Under which the algorithm is registered.
            conf_file: File with hyper-parameters, if one was given; here, none is taken.
            env: Environment id.

        Raises:
            ValueError: If it takes no such file, or the file is damaged.
            FileNotFoundError: If there is no such file.
            ModuleNotFoundError: If the algorithm needs a package that is missing.
        """
        if conf_file is not None:
            raise ValueError(f"conf_file={conf_file!r} is for SB3's algorithms; {name} takes preset=.")

    def env_kwargs(self, conf_file: str | None, env: str) -> dict[str, Any]:
        """Arguments of the environment that the file with hyper-parameters names; they must be those of the run."""
        return {}

    @abstractmethod
    def timesteps(self, conf_file: str | None, env: str) -> int:
        """Decisions of a training for which no number was given."""

    @abstractmethod
    def train(self, run: TrainingRun) -> Agent:
        """Trains an agent, writes it to `run.model`, and returns it.

        Ctrl-C has to arrive at the caller, as KeyboardInterrupt, with `run.last` in a state to continue from;
        `train.runs.interrupt.deferred_interrupt` and `run.saving` are made for it.
        """

    @abstractmethod
    def load(self, path: Path) -> Agent:
        """The agent that `train` wrote to `path`.

        If it has `observation_space` and `action_space`, `load_agent` compares them with the environment's.
        """
