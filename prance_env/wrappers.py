"""Other spaces for the same environment: named parts as a Dict, and discrete actions.

Every wrapper exists for the single environment and, with "Vector" in front, for the native batch, whose results it
equals. They work with both outputs and in all autoreset modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from supernet import SearchSpace
from supernet.reading import plain

from .settings import EnvSettings
from .spaces import IntegerActions, dict_space, multi_discrete, take_apart

SIZES, KEEPS, KEEP_LEVELS = (0.0, 0.5, 1.0), (0.0, 1 / 3, 2 / 3, 1.0), 5


def preset_actions(
    space: SearchSpace, sizes: Sequence[float] = SIZES, keeps: Sequence[float] = KEEPS
) -> list[list[float]]:
    """Actions in [0, 1] that choose all sizes together: every entry of `sizes` with every entry of `keeps`.

    Args:
        space: The search space.
        sizes: For widths and ratios of all blocks, 0 the smallest and 1 the largest.
        keeps: For the keep rates.

    Returns:
        len(sizes) * len(keeps) rows of `space.action_size` numbers, ascending in size.
    """
    blocks = 2 * space.blocks_per_decision
    rates = space.action_size - blocks
    return [[float(size)] * blocks + [float(keep)] * rates for size in sizes for keep in keeps]


class DictObservation(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Takes the observation vector apart: a Dict with one Box per part, named as in `observation_layout`.

    Args:
        env: A `PranceEnv`, with or without wrappers that leave its observations alone.

    Raises:
        TypeError: If there is no `PranceEnv` inside.
        ValueError: If another wrapper has changed the observations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.layout, self.observation_space = _dict_space(_settings(env), env.observation_space)

    def observation(self, observation: Any) -> dict[str, Any]:
        """The parts of one vector."""
        return take_apart(observation, self.layout)


class VectorDictObservation(VectorWrapper):
    """`DictObservation` for the native batch; `final_obs` is taken apart as well.

    Args:
        env: A `PranceVectorEnv`, with or without wrappers that leave its observations alone.

    Raises:
        TypeError: If there is no `PranceVectorEnv` inside.
        ValueError: If another wrapper has changed the observations.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.layout, self.single_observation_space = _dict_space(_settings(env), env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self.observations(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            final = infos["final_obs"]
            if isinstance(final, np.ndarray):  # one object per lane, None where no episode ended
                for lane in np.flatnonzero(infos["_final_obs"]):
                    final[lane] = self.observations(final[lane])
            else:
                infos["final_obs"] = self.observations(final)
        return self.observations(observations), rewards, terminated, truncated, infos

    def observations(self, observations: Any) -> dict[str, Any]:
        """The parts of (..., O) vectors; each tensor can be changed without the others, as all that a step returns."""
        if not isinstance(observations, Tensor):
            return take_apart(observations, self.layout)
        with torch.inference_mode(False):
            return {name: part.clone() for name, part in take_apart(observations, self.layout).items()}


class DiscreteActions(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """One integer a decision, for DQN and its family: `Discrete(k)` over k preset actions.

    Args:
        env: A `PranceEnv`.
        presets: (k, A) actions in [0, 1]; None: `preset_actions`, 12 of them.

    Raises:
        TypeError: If there is no `PranceEnv` inside.
        ValueError: If the presets have another shape or lie outside [0, 1].
    """

    def __init__(self, env: gym.Env[Any, Any], presets: Sequence[Sequence[float]] | None = None) -> None:
        RecordConstructorArgs.__init__(self, presets=plain(presets))  # arrays are no JSON
        gym.ActionWrapper.__init__(self, env)
        self.integers, self.action_space = _discrete(_settings(env), presets)

    def action(self, action: Any) -> NDArray[np.float32]:
        """The preset of that number."""
        return self.integers.decode(action, (), self.action_space)


class VectorDiscreteActions(VectorActionWrapper):
    """`DiscreteActions` for the native batch: (num_envs,) integers.

    Args:
        env: The batch.
        presets: What the integers stand for, row by row: (k, A) actions in [0, 1], the same for every lane. None takes
            the twelve of `preset_actions`.

    Raises:
        TypeError: If there is no `PranceVectorEnv` inside.
        ValueError: If the presets have another shape or lie outside [0, 1].
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], presets: Sequence[Sequence[float]] | None = None) -> None:
        super().__init__(env)
        self.integers, self.single_action_space = _discrete(_settings(env), presets)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def actions(self, actions: Any) -> NDArray[np.float32]:
        """The presets of these numbers."""
        return self.integers.decode(actions, (self.num_envs,), self.action_space)


class MultiDiscreteActions(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """One integer for every entry of the action: `MultiDiscrete`, the number of the ratio, the width, the keep rate.

    Args:
        env: A `PranceEnv`.
        keep_levels: Number of keep rates, evenly spaced from the smallest to 1; at least 2.

    Raises:
        TypeError: If there is no `PranceEnv` inside.
        ValueError: If `keep_levels` is below 2.
    """

    def __init__(self, env: gym.Env[Any, Any], keep_levels: int = KEEP_LEVELS) -> None:
        RecordConstructorArgs.__init__(self, keep_levels=plain(keep_levels))
        gym.ActionWrapper.__init__(self, env)
        self.integers, self.action_space = _multi_discrete(_settings(env), keep_levels)

    def action(self, action: Any) -> NDArray[np.float32]:
        """The action that these numbers stand for."""
        return self.integers.decode(action, self.action_space.shape or (), self.action_space)


class VectorMultiDiscreteActions(VectorActionWrapper):
    """`MultiDiscreteActions` for the native batch: (num_envs, A) integers.

    Args:
        env: A `PranceVectorEnv`.
        keep_levels: Number of keep rates to choose among, evenly spaced from the smallest to 1, the same for every
            lane; at least 2.

    Raises:
        TypeError: If there is no `PranceVectorEnv` inside.
        ValueError: If `keep_levels` is below 2.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], keep_levels: int = KEEP_LEVELS) -> None:
        super().__init__(env)
        self.integers, self.single_action_space = _multi_discrete(_settings(env), keep_levels)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def actions(self, actions: Any) -> NDArray[np.float32]:
        """The actions that these numbers stand for."""
        return self.integers.decode(actions, self.action_space.shape or (), self.action_space)


def _settings(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> EnvSettings:
    settings = getattr(env.unwrapped, "settings", None)
    if not isinstance(settings, EnvSettings):
        raise TypeError(f"{env} is not an environment of prance_env.")
    return settings


def _dict_space(settings: EnvSettings, flat: gym.Space[Any]) -> tuple[dict[str, slice], gym.spaces.Dict]:
    box, layout = settings.spaces()[0], settings.layout()
    if flat != box:
        raise ValueError(f"Observations must be the environment's {box} to be taken apart, not {flat}.")
    return layout, dict_space(layout, box)


def _discrete(
    settings: EnvSettings, presets: Sequence[Sequence[float]] | None
) -> tuple[IntegerActions, gym.spaces.Discrete[Any]]:
    space = settings.config().space
    table = np.array(preset_actions(space) if presets is None else presets, dtype=np.float64)
    if table.ndim != 2 or not len(table) or table.shape[1] != space.action_size:
        raise ValueError(f"presets have the shape {table.shape}; expected (k, {space.action_size}) with k >= 1.")
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("presets must lie in [0, 1].")
    return IntegerActions(settings.normalize_actions, [table]), cast(Any, gym.spaces.Discrete(len(table)))


def _multi_discrete(settings: EnvSettings, keep_levels: int) -> tuple[IntegerActions, gym.spaces.MultiDiscrete[Any]]:
    return multi_discrete(settings.config().space, settings.normalize_actions, keep_levels)
