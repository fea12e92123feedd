"""Watching an agent learn: judged on validation images now and then, the best one kept, episodes pictured."""

from __future__ import annotations

import random
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger

from agents.protocol import Agent
from prance_env.images.config import CLASSES
from prance_env.rendering import render_episode
from prance_env.settings import EnvSettings
from supernet.arrays import Ints, evenly

from ..evaluate.budget import at_price, front_prices
from ..play import mean_return, play
from ..report.episodes import of_every_kind
from ..runs.folder import COMMAND, CONFIG
from ..runs.rows import EVALUATIONS, RowLog
from ..runs.trust import SYSTEM
from .board import write_validation, writer_of

BEST = "best"
"""Name of the folder in a run folder that holds the best agent, and is a run folder of its own."""
PRICES = 3
"""Agents for a range of prices are judged at so many of them."""
PICTURED, COLUMNS, BETWEEN = 4, 2, 8


class Validation:
    """Judges an agent between two rollouts; what is trained does not depend on it, bit for bit.

    Its rows belong to the checkpoints of their run, as those of `metrics.jsonl` do.

    Args:
        env: The environment that the agent is trained in.
        out: Run folder.
        every: Decisions between two validations; 0: none.
        images: Number of validation images, evenly spaced in the split; all of them if it has fewer.

    Raises:
        ValueError: If there are no validation images.
    """

    def __init__(self, env: EnvSettings, out: Path, every: int, images: int) -> None:
        self.every, self.images = every, images
        self.log = RowLog(out / EVALUATIONS, "timesteps")
        self._last, self._best = 0, -np.inf
        self._envs: list[EnvSettings] = []
        if every:
            val = replace(env, split="val")
            conditioned = val.conditioning is not None
            self._envs = [at_price(val, price) for price in front_prices(val, PRICES)] if conditioned else [val]

    def resume(self, timesteps: int) -> None:
        """Goes on from a checkpoint: what was found after it is found again."""
        self.log.forget_after(timesteps)
        rows = _rows(self.log)
        self._last = max((row["timesteps"] for row in rows), default=0)
        self._best = max((row["return"] for row in rows), default=-np.inf)

    def due(self, timesteps: int) -> bool:
        """Whether `every` decisions have been taken since the last validation was due."""
        return self.every > 0 and timesteps // self.every > self._last // self.every

    def due_at_end(self, timesteps: int) -> bool:
        """Whether the agent at the end of a training is another one than was judged last."""
        return self.every > 0 and timesteps > self._last

    def is_best(self, agent: Any, timesteps: int, logger: Logger | None) -> bool:
        """Judges an agent.

        Args:
            agent: Whatever has SB3's `predict`.
            timesteps: Decisions that it has learned from.
            logger: Of the training, whose TensorBoard gets the curves "eval/return", "eval/accuracy" and
                "eval/macs_fraction" and a picture of episodes.

        Returns:
            Whether its mean return is the highest so far. At several prices, the mean over them counts.
        """
        with _generators_kept():
            source = self._envs[0].engine().dataset
            shown = evenly(len(source), self.images)  # folders list theirs class by class
            found = np.mean([mean_return(agent, env, images=shown) for env in self._envs], axis=0).tolist()
            values = dict(zip(("return", "accuracy", "macs_fraction"), found, strict=True))
            writer = writer_of(logger)
            middle = self._envs[len(self._envs) // 2]
            picture = None if writer is None else picture_of_episodes(agent, middle, of_every_kind(source, PICTURED))
            write_validation(writer, timesteps, values, picture)
        self.log.write({"timesteps": timesteps, **values})
        self._last = timesteps
        best, self._best = values["return"] > self._best, max(values["return"], self._best)
        return best


def begin_best(out: Path, stage: Path) -> Path:
    """The folder for the best agent among the staged files of a run, with what makes a run folder of it."""
    folder = stage / BEST
    folder.mkdir()
    for name in (CONFIG, COMMAND, SYSTEM, *([CLASSES] if (out / CLASSES).exists() else [])):
        shutil.copyfile(out / name, folder / name)
    return folder


def best_row(out: Path) -> dict[str, Any] | None:
    """What the validation of a run's best agent found; None if it had none."""
    return max(_rows(RowLog(out / EVALUATIONS, "timesteps")), key=lambda row: row["return"], default=None)


def _rows(log: RowLog) -> list[dict[str, Any]]:
    """What validations noted; rows that tell of no return are refused, as the best agent is chosen by it.

    Raises:
        ValueError: If there is one.
    """
    rows = [*log.read().values()]
    for row in rows:
        if type(row.get("return")) not in (int, float) or not np.isfinite(row["return"]):
            raise ValueError(
                f"{log.path}: the row at {row['timesteps']} says return={reprlib.repr(row.get('return'))}, which must "
                "be a number; put a copy of the file back, or remove the row."
            )
    return rows


def picture_of_episodes(agent: Agent, settings: EnvSettings, images: Ints) -> NDArray[np.uint8]:
    """The last frames of the episodes on some images, side by side."""
    engine = settings.engine()
    path, _ = play(agent, settings, engine, images, reward=settings.reward_config)
    frames = [render_episode(engine, path[-1].host[np.array([row])]) for row in range(len(images))]
    frames += [np.zeros_like(frames[0])] * (-len(frames) % COLUMNS)
    frames = [np.pad(frame, [(BETWEEN, BETWEEN), (BETWEEN, BETWEEN), (0, 0)]) for frame in frames]
    return np.concatenate([np.concatenate(frames[i : i + COLUMNS], axis=1) for i in range(0, len(frames), COLUMNS)])


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leaves the random generators that trainings draw from as they were; networks that are made draw from them."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - SB3 draws from it
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
