"""What an algorithm is that trains agents: the class to derive from, and what it is asked for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents.protocol import Agent
from prance_env.settings import EnvArguments, EnvSettings
from supernet.files import write_text

ROLLOUTS_PER_CHECKPOINT = 10


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

    def env_settings(self) -> EnvSettings:
        """The settings of the environment that the agent acts in."""
        return EnvSettings.from_arguments(self.env_kwargs())

    def env_kwargs(self) -> dict[str, Any]:
        """All arguments of the environment, those of its id included."""
        return {**gym.spec(self.env.removeprefix("prance_env:")).kwargs, **self.env_arguments}

    def write_row(self, timesteps: int, **values: float) -> None:
        """Adds a row to `metrics.jsonl`."""
        with (self.out / "metrics.jsonl").open("a") as f:
            f.write(json.dumps({"timesteps": timesteps, **values}) + "\n")

    def forget_after(self, timesteps: int) -> None:
        """Drops those rows of `metrics.jsonl` that a resumed run repeats."""
        path = self.out / "metrics.jsonl"
        rows = path.read_text().splitlines(keepends=True)
        write_text(path, "".join(r for r in rows if json.loads(r)["timesteps"] <= timesteps))

    def say_stopped(self, timesteps: int) -> None:
        """Tells the user how to go on after Ctrl-C."""
        print(f"\nStopped at {timesteps} of {self.total_timesteps} steps; continue with --resume.")


class Algorithm(ABC):
    """How agents are trained and loaded; derive from it, and `register_algorithm` makes it known by a name.

    Attributes:
        suffix: Suffix of the files of saved agents, such as ".zip"; empty for folders.
        presets: Names of settings that `preset` may have, the default first.
    """

    suffix: str = ""
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

    @abstractmethod
    def timesteps(self, conf_file: str | None, env: str) -> int:
        """Decisions of a training for which no number was given."""

    @abstractmethod
    def train(self, run: TrainingRun) -> Agent:
        """Trains an agent, writes it to `run.model`, and returns it.

        Ctrl-C has to arrive at the caller, as KeyboardInterrupt, with `run.last` in a state to continue from.
        """

    @abstractmethod
    def load(self, path: Path) -> Agent:
        """The agent that `train` wrote to `path`.

        If it has `observation_space` and `action_space`, `load_agent` compares them with the environment's.
        """
