"""N lanes of episodes that may stand at different decisions, with one random generator each.

What the Gymnasium and the Stable-Baselines3 faces have in common: settings, seeding, drawing images, stepping, infos.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray

from supernet import SupernetConfig
from supernet.checkpoint import load_config

from .dataset_config import DatasetConfig
from .datasets import ON_ERROR, check_dataset
from .engine import CACHE_MB, Episodes, InferenceEngine, Ints, checkpoint_folder, shared_engine
from .reward import Bools, Floats, RewardConfig
from .spaces import action_space, decode_actions, observation_space

IMPORTED_IN = os.getpid()


@dataclass(frozen=True)
class EnvSettings:
    """Validated keyword arguments of an environment; see `PranceEnv` for their meaning."""

    supernet: str
    checkpoint: str | None
    dataset: str | dict[str, Any]
    split: str
    reward: RewardConfig
    observation: str
    normalize_actions: bool
    device: str
    cache_mb: float = field(default=CACHE_MB, kw_only=True)
    cache_dir: str | None = field(default=None, kw_only=True)
    num_workers: int = field(default=0, kw_only=True)
    on_error: str = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        check_dataset(self.dataset, self.split)
        if not 0 <= self.cache_mb < float("inf"):
            raise ValueError(f"cache_mb={self.cache_mb!r} must be a number of MiB >= 0; 0 keeps verdicts only.")
        if self.num_workers != int(self.num_workers) or self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers!r} must be an integer >= 0; 0 decodes without processes.")
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r} is unknown; choose one of {ON_ERROR}.")
        try:
            torch.device(self.device)
        except RuntimeError as e:
            raise ValueError(f"device={self.device!r} is unknown; pass one such as 'cpu' or 'cuda:0'.") from e

    @classmethod
    def from_id(
        cls,
        env_id: str = "Prance-Digits-v0",
        split: str = "train",
        checkpoint: str | None = None,
        observation: str = "cls",
        device: str = "cpu",
    ) -> EnvSettings:
        """Settings of a registered environment with the default reward, for evaluation.

        Args:
            env_id: A registered id of this package.
            split: See `PranceEnv`, likewise the others.
            checkpoint: See there.
            observation: See there.
            device: See there.

        Raises:
            ValueError: If the id is not one of this package's.
        """
        try:
            kwargs = gym.spec(env_id.removeprefix("prance_env:")).kwargs
        except gym.error.Error as e:
            raise ValueError(f"Environment id {env_id!r} is unknown ({e}); `prance list` shows the known ones.") from e
        if "supernet" not in kwargs:
            raise ValueError(f"{env_id!r} is not an environment of prance_env; `prance list` shows the known ones.")
        supernet, dataset = kwargs["supernet"], kwargs["dataset"]
        return cls(supernet, checkpoint, dataset, split, RewardConfig(), observation, True, device)

    def config(self) -> SupernetConfig:
        """Configuration of the supernet."""
        return load_config(checkpoint_folder(self.supernet, self.checkpoint))

    def spaces(self) -> tuple[gym.spaces.Box, gym.spaces.Box]:
        """Observation and action space."""
        config = self.config()
        return observation_space(config, self.observation), action_space(config.space, self.normalize_actions)

    def engine(self) -> InferenceEngine:
        """The engine, which all environments of a process with the same arguments share."""
        if os.getpid() != IMPORTED_IN:
            # A forked child would wait for ever for the OpenMP threads that its parent had.
            torch.set_num_threads(1)
        return shared_engine(
            self.supernet,
            self.checkpoint,
            DatasetConfig.from_value(self.dataset),
            self.split,
            self.device,
            self.cache_mb,
            self.cache_dir,
            self.num_workers,
            self.on_error,
        )


class Lanes:
    """State of N episodes.

    Args:
        settings: Of the environment.
        num_lanes: N.
    """

    def __init__(self, settings: EnvSettings, num_lanes: int) -> None:
        self.settings = settings
        self.engine = settings.engine()
        self.num_lanes = num_lanes
        self.generators: list[np.random.Generator | None] = [None] * num_lanes
        self.parts: list[tuple[Ints, Episodes]] = []

    def seed(self, lane: int, seed: int | None) -> None:
        """Gives `lane` a generator of its own, as `gymnasium.Env.reset(seed=)` would."""
        self.generators[lane] = seeding.np_random(seed)[0]

    def start(self, lanes: Ints, index: Ints | None = None) -> None:
        """Begins new episodes in `lanes`, on the images `index` or on ones that the lanes' generators draw."""
        if index is None:
            index = np.array([self._draw(lane) for lane in lanes])
        fresh = self.engine.start(index)
        parts: list[tuple[Ints, Episodes]] = []
        for members, episodes in self.parts:
            stay = np.flatnonzero(~np.isin(members, lanes))
            if len(stay):
                parts.append((members[stay], episodes[stay]))
        self.parts = [*parts, (lanes, fresh)]
        if ahead := self.engine.lookahead:
            self.engine.prefetch(np.array([self._next_draw(lane) for lane in lanes[:ahead]]))

    def _draw(self, lane: int) -> int:
        return int(self._generator(lane).integers(len(self.engine.dataset)))

    def _next_draw(self, lane: int) -> int:
        """What `_draw` will give, while the generator stays where it is."""
        before = self._generator(lane).bit_generator.state
        index = self._draw(lane)
        self._generator(lane).bit_generator.state = before
        return index

    def _generator(self, lane: int) -> np.random.Generator:
        generator = self.generators[lane]
        if generator is None:
            generator = self.generators[lane] = seeding.np_random()[0]
        return generator

    def step(self, actions: NDArray[np.floating]) -> None:
        """Takes one decision in every lane whose episode is not over; the actions (N, A) of the others are ignored.

        Raises:
            ValueError: If an action holds NaN.
        """
        unit = decode_actions(np.where(self.terminated()[:, None], 0, actions), self.settings.normalize_actions)
        self.parts = [
            (
                members,
                episodes if self._over(episodes) else self.engine.step(episodes, unit[members], self.settings.reward),
            )
            for members, episodes in self.parts
        ]

    def observations(self) -> NDArray[np.float32]:
        """(N, O) float32, a fresh array."""
        return self._gather([self.engine.observe(e, self.settings.observation).cpu().numpy() for _, e in self.parts])

    def rewards(self) -> Floats:
        """(N,) rewards of the last decisions."""
        return self._gather([e.reward for _, e in self.parts])

    def terminated(self) -> Bools:
        """(N,) whether every decision of the episode has been taken."""
        return self._gather([np.full(len(e), self._over(e)) for _, e in self.parts])

    def infos(self) -> dict[str, NDArray[Any]]:
        """One array with N rows per key; always the same keys, shapes and types."""
        rows = [_info(e, self.engine.full_macs) for _, e in self.parts]
        return {key: self._gather([r[key] for r in rows]) for key in rows[0]}

    def lane(self, lane: int) -> Episodes:
        """The episode of one lane, as a batch of one."""
        for members, episodes in self.parts:
            if lane in members:
                return episodes[np.flatnonzero(members == lane)]
        raise IndexError(f"lane={lane} has no episode; lanes are 0..{self.num_lanes - 1}.")

    def _over(self, episodes: Episodes) -> bool:
        return episodes.decision == self.engine.config.space.num_decisions

    def _gather(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        out = np.empty((self.num_lanes, *values[0].shape[1:]), dtype=values[0].dtype)
        for (members, _), value in zip(self.parts, values, strict=True):
            out[members] = value
        return out


def _info(episodes: Episodes, full_macs: int) -> dict[str, NDArray[Any]]:
    return {
        "index": episodes.index,
        "label": episodes.label,
        "decision": np.full(len(episodes), episodes.decision),
        "embed_dim": episodes.embed_dim,
        "mlp_ratio": episodes.mlp_ratio,
        "num_tokens": episodes.state.num_tokens,
        "macs": episodes.macs,
        "macs_fraction": episodes.macs / full_macs,
        "reward_accuracy": episodes.reward_accuracy,
        "reward_macs": episodes.reward_macs,
        "reward_tokens": episodes.reward_tokens,
        "prediction": episodes.prediction,
        "is_success": episodes.success,
    }
