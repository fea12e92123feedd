"""N lanes of episodes that may stand at different decisions, with one random generator each.

What the Gymnasium and the Stable-Baselines3 faces have in common: settings, seeding, drawing images, stepping, infos.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from supernet import SupernetConfig

from .engine import CACHE_MB, Episodes, InferenceEngine, Ints
from .images.config import DatasetConfig
from .images.loading import ON_ERROR, check_dataset
from .rewards.config import Bools, Floats, RewardConfig
from .rewards.latency import load_latency_table
from .rewards.prices import CostConditioning
from .shared_engine import check_complete, checked_dtype, resolved_config, shared_engine
from .spaces import action_space, decode_actions, observation_layout, observation_space

IMPORTED_IN = os.getpid()


@dataclass(frozen=True)
class EnvSettings:
    """Validated keyword arguments of an environment; see `PranceEnv` for their meaning.

    Raises:
        ValueError: If an argument is unknown or out of range.
        FileNotFoundError: If the checkpoint or the latency table is missing.
    """

    supernet: str
    checkpoint: str | None
    dataset: str | dict[str, Any]
    split: str
    reward: RewardConfig
    observation: str
    normalize_actions: bool
    device: str
    cost_conditioning: CostConditioning | None = None
    cache_mb: float = field(default=CACHE_MB, kw_only=True)
    cache_dir: str | None = field(default=None, kw_only=True)
    num_workers: int = field(default=0, kw_only=True)
    on_error: str = field(default="raise", kw_only=True)
    token_mode: str | None = field(default=None, kw_only=True)
    dtype: str = field(default="float32", kw_only=True)
    decide_first_group: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_dataset(self.dataset, self.split)
        if not 0 <= self.cache_mb < float("inf"):
            raise ValueError(f"cache_mb={self.cache_mb!r} must be a number of MiB >= 0; 0 keeps verdicts only.")
        if self.num_workers != int(self.num_workers) or self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers!r} must be an integer >= 0; 0 decodes without processes.")
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r} is unknown; choose one of {ON_ERROR}.")
        checked_dtype(self.dtype)
        config = self.config()
        if self.reward.latency_table is not None:
            load_latency_table(self.reward.latency_table).check(config)
        try:
            torch.device(self.device)
        except RuntimeError as e:
            raise ValueError(f"device={self.device!r} is unknown; pass one such as 'cpu' or 'cuda:0'.") from e

    @classmethod
    def from_arguments(
        cls,
        supernet: str,
        checkpoint: str | None,
        dataset: str | dict[str, Any] | None,
        split: str,
        reward: dict[str, Any] | None,
        observation: str,
        normalize_actions: bool,
        device: str,
        cost_conditioning: Sequence[float] | None,
        cache_mb: float = CACHE_MB,
        cache_dir: str | None = None,
        num_workers: int = 0,
        on_error: str = "raise",
        token_mode: str | None = None,
        dtype: str = "float32",
        decide_first_group: bool | None = None,
    ) -> EnvSettings:
        """From the plain data that environments take."""
        check_complete(supernet, checkpoint, dataset)
        assert dataset is not None
        return cls(
            supernet,
            checkpoint,
            dataset,
            split,
            RewardConfig.from_dict(reward, resolved_config(supernet, checkpoint, token_mode, decide_first_group)),
            observation,
            normalize_actions,
            device,
            CostConditioning.from_plain(cost_conditioning),
            cache_mb=cache_mb,
            cache_dir=cache_dir,
            num_workers=num_workers,
            on_error=on_error,
            token_mode=token_mode,
            dtype=dtype,
            decide_first_group=decide_first_group,
        )

    @classmethod
    def from_id(
        cls,
        env_id: str = "Prance-Digits-v0",
        split: str = "train",
        checkpoint: str | None = None,
        observation: str = "cls",
        device: str = "cpu",
        cost_conditioning: Sequence[float] | None = None,
        token_mode: str | None = None,
        dtype: str = "float32",
        decide_first_group: bool | None = None,
        dataset: str | dict[str, Any] | None = None,
    ) -> EnvSettings:
        """Settings of a registered environment with the default reward, for evaluation.

        Args:
            env_id: A registered id of this package.
            split: See `PranceEnv`, likewise the others.
            checkpoint: See there.
            observation: See there.
            device: See there.
            cost_conditioning: See there; (low, high, fixed) evaluates at one price.
            token_mode: See there.
            dtype: See there.
            decide_first_group: See there.
            dataset: See there; None takes that of the id.

        Raises:
            ValueError: If the id is not one of this package's, or needs a checkpoint or a data set that is not given.
        """
        try:
            kwargs = gym.spec(env_id.removeprefix("prance_env:")).kwargs
        except gym.error.Error as e:
            raise ValueError(f"Environment id {env_id!r} is unknown ({e}); `prance list` shows the known ones.") from e
        if "supernet" not in kwargs:
            raise ValueError(f"{env_id!r} is not an environment of prance_env; `prance list` shows the known ones.")
        supernet, dataset = kwargs["supernet"], kwargs.get("dataset") if dataset is None else dataset
        return cls.from_arguments(
            supernet,
            checkpoint,
            dataset,
            split,
            None,
            observation,
            True,
            device,
            cost_conditioning,
            token_mode=token_mode,
            dtype=dtype,
            decide_first_group=decide_first_group,
        )

    def config(self) -> SupernetConfig:
        """Configuration of the supernet, with what these settings change of it."""
        return resolved_config(self.supernet, self.checkpoint, self.token_mode, self.decide_first_group)

    def spaces(self) -> tuple[gym.spaces.Box, gym.spaces.Box]:
        """Observation and action space."""
        config, conditioned = self.config(), self.cost_conditioning is not None
        return (
            observation_space(config, self.observation, conditioned),
            action_space(config.space, self.normalize_actions),
        )

    def layout(self) -> dict[str, slice]:
        """Name and slice of every part of the observation, in order."""
        return observation_layout(self.config(), self.observation, self.cost_conditioning is not None)

    def engine(self) -> InferenceEngine:
        """The engine, which all environments of a process with the same arguments share."""
        if os.getpid() != IMPORTED_IN:
            # A forked child would wait for ever for the OpenMP threads that its parent had.
            torch.set_num_threads(1)
        space = self.config().space
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
            # What the checkpoint says anyway is the same engine.
            space.token_mode,
            self.dtype,
            space.decide_first_group,
            self.observation == "key_mean",
        )


class Lanes:
    """State of N episodes. A call either succeeds or raises and changes nothing.

    Args:
        settings: Of the environment.
        num_lanes: N.

    Attributes:
        generators: The random generator of every lane; None until it is seeded or first drawn from.
        parts: The lanes that are equally far, and their episodes as one batch; together they are all lanes.
    """

    def __init__(self, settings: EnvSettings, num_lanes: int) -> None:
        self.settings = settings
        self.engine = settings.engine()
        self.num_lanes = num_lanes
        self.generators: list[np.random.Generator | None] = [None] * num_lanes
        self.parts: list[tuple[Ints, Episodes]] = []
        path = settings.reward.latency_table
        self._latency = None if path is None else load_latency_table(path)

    @contextmanager
    def undone_on_error(self, drawing: Ints) -> Iterator[None]:
        """Restores episodes and the generators of the lanes `drawing` if the block raises."""
        parts, generators = self.parts, list(self.generators)
        states = {int(lane): g.bit_generator.state for lane in drawing if (g := generators[lane]) is not None}
        try:
            yield
        except BaseException:
            self.parts, self.generators = parts, generators
            for lane, state in states.items():
                generator = generators[lane]
                assert generator is not None
                generator.bit_generator.state = state
            raise

    def start(
        self,
        lanes: Ints,
        index: Ints | None = None,
        macs_weight: Floats | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        """Begins new episodes.

        Args:
            lanes: (L,) lanes, ascending.
            index: (L,) images; None draws them from the lanes' generators.
            macs_weight: (L,) prices, if the environment is cost-conditioned; None draws them after the images.
            seeds: (L,) seeds for new generators, as `gymnasium.Env.reset(seed=)` takes; None goes on with the old ones.

        Raises:
            IndexError: If an image does not exist.
            gymnasium.error.Error: If a seed is negative.
        """
        with self.undone_on_error(lanes):
            if seeds is not None:
                self.generators = list(self.generators)
                for lane, seed in zip(lanes.tolist(), seeds, strict=True):
                    if seed is not None:
                        self.generators[lane] = seeding.np_random(seed)[0]
            conditioning, total = self.settings.cost_conditioning, len(self.engine.dataset)
            images = np.empty(len(lanes), dtype=np.int64) if index is None else index
            prices = np.empty(len(lanes)) if macs_weight is None else macs_weight
            for row, lane in enumerate(lanes.tolist()):
                if index is None:
                    images[row] = self._generator(lane).integers(total)
                if conditioning is not None and macs_weight is None:
                    prices[row] = conditioning.draw(self._generator(lane))
            fresh = self._dressed(self.engine.start(images), None if conditioning is None else prices)
            parts: list[tuple[Ints, Episodes]] = []
            for members, episodes in self.parts:
                stay = np.flatnonzero(~np.isin(members, lanes))
                if len(stay):
                    parts.append((members[stay], episodes[stay]))
            self.parts = [*parts, (lanes, fresh)]
            if ahead := self.engine.lookahead:
                self.engine.prefetch(np.array([self._next_draw(lane) for lane in lanes[:ahead].tolist()]))

    def _next_draw(self, lane: int) -> int:
        """The image that the lane will draw next, while its generator stays where it is."""
        generator = self._generator(lane)
        before = generator.bit_generator.state
        index = int(generator.integers(len(self.engine.dataset)))
        generator.bit_generator.state = before
        return index

    def _generator(self, lane: int) -> np.random.Generator:
        generator = self.generators[lane]
        if generator is None:
            generator = self.generators[lane] = seeding.np_random()[0]
        return generator

    def _dressed(self, episodes: Episodes, macs_weight: Floats | None) -> Episodes:
        """New episodes with their prices and, if there is a latency table, their times."""
        episodes = replace(episodes, macs_weight=macs_weight)
        if self._latency is None:
            return episodes
        space = self.engine.config.space
        spent, full = self._latency.begin_ms(space), self._latency.full_ms(space)
        batch = len(episodes)
        return replace(episodes, latency_spent_ms=np.full(batch, spent), latency_ms=np.full(batch, full))

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

    def observations(self) -> Tensor:
        """(N, O) float32 on the device of the supernet, a fresh tensor that autograd can save."""
        settings = self.settings
        values = [self.engine.observe(e, settings.observation, settings.cost_conditioning) for _, e in self.parts]
        if len(values) == 1 and np.array_equal(self.parts[0][0], np.arange(self.num_lanes)):
            return values[0].clone()
        order = np.argsort(np.concatenate([members for members, _ in self.parts]))
        return torch.cat(values)[torch.from_numpy(order).to(values[0].device)]

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
    info = {
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
    optional = {"macs_weight": episodes.macs_weight, "latency_ms": episodes.latency_ms}
    return info | {key: value for key, value in optional.items() if value is not None}
