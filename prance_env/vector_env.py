"""Many images at a time: the native Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .engine import CACHE_MB, Ints
from .env import check_action_shape, check_index, check_render_mode
from .lanes import EnvSettings, Lanes
from .rendering import render_ansi, render_episode
from .reward import Bools, Floats, RewardConfig


class PranceVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.float32], NDArray[Any]], EzPickle):
    """N `PranceEnv` computed as one batch; lane i equals a `PranceEnv` that was seeded with `seed + i`.

    Episodes all have the same length, so all lanes end together unless they were reset apart.

    Args:
        num_envs: N.
        autoreset_mode: What happens when an episode ends: `AutoresetMode.NEXT_STEP` (Gymnasium's default: the following
            step ignores its action and resets), `SAME_STEP` (the step that ends the episode returns the next one's
            first observation, and `final_obs` and `final_info` in the infos), or `DISABLED` (call
            `reset(options={"reset_mask": ...})`). A name or a member.
        supernet: See `PranceEnv`, likewise the others.
        checkpoint: See there.
        dataset: See there.
        split: See there.
        reward: See there.
        observation: See there.
        normalize_actions: See there.
        device: See there.
        render_mode: See there.
        cache_mb: See there.
        cache_dir: See there.
        num_workers: See there.
        on_error: See there.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        supernet: str = "digits",
        checkpoint: str | None = None,
        dataset: str | dict[str, Any] = "digits",
        split: str = "train",
        reward: dict[str, Any] | None = None,
        observation: str = "cls",
        normalize_actions: bool = True,
        device: str = "cpu",
        render_mode: str | None = None,
        cache_mb: float = CACHE_MB,
        cache_dir: str | None = None,
        num_workers: int = 0,
        on_error: str = "raise",
    ) -> None:
        EzPickle.__init__(
            self,
            num_envs,
            autoreset_mode,
            supernet,
            checkpoint,
            dataset,
            split,
            reward,
            observation,
            normalize_actions,
            device,
            render_mode,
            cache_mb,
            cache_dir,
            num_workers,
            on_error,
        )
        if int(num_envs) != num_envs or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r} must be a positive integer.")
        check_render_mode(render_mode)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2, "autoreset_mode": self.autoreset_mode}
        self.settings = EnvSettings(
            supernet,
            checkpoint,
            dataset,
            split,
            RewardConfig.from_dict(reward),
            observation,
            normalize_actions,
            device,
            cache_mb=cache_mb,
            cache_dir=cache_dir,
            num_workers=num_workers,
            on_error=on_error,
        )
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.config = self.settings.config()
        self.single_observation_space, self.single_action_space = self.settings.spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._lanes: Lanes | None = None

    @property
    def lanes(self) -> Lanes:
        """The episodes.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if self._lanes is None:
            raise ResetNeeded("The episodes have not begun; call reset() before step() or render().")
        return self._lanes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins episodes.

        Args:
            seed: Lane i is seeded with `seed + i`, or with entry i of a sequence; None goes on with the old generators.
            options: May hold "index", the image of every lane ((num_envs,) integers), and "reset_mask", (num_envs,)
            bool:
                only these lanes are reset.

        Raises:
            ValueError: If a length or shape is wrong.
            TypeError: If `reset_mask` is not a boolean numpy array.
        """
        options = options or {}
        mask = _check_reset_mask(options.get("reset_mask"), self.num_envs)
        if isinstance(seed, int | np.integer):
            seeds: list[int | None] = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds were given for num_envs={self.num_envs}; pass one per environment.")
        if self._lanes is None:
            if not mask.all():
                raise ResetNeeded("The first reset() must reset every environment; leave reset_mask out.")
            self._lanes = Lanes(self.settings, self.num_envs)
        for lane in np.flatnonzero(mask):
            if seeds[lane] is not None:
                self._lanes.seed(int(lane), seeds[lane])
        index = options.get("index")
        if index is not None:
            index = check_index(index, (self.num_envs,))[mask]
        self._lanes.start(np.flatnonzero(mask), index)
        return self._lanes.observations(), _with_masks(self._lanes.infos(), mask)

    def step(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], Floats, Bools, Bools, dict[str, Any]]:
        """Takes one decision in every lane (NEXT_STEP: in every lane that has not ended).

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset, and with DISABLED if a lane has ended.
            ValueError: If the actions have another shape or hold NaN.
        """
        lanes = self.lanes
        actions = check_action_shape(actions, self.action_space.shape or ())
        ended = np.flatnonzero(lanes.terminated())
        if self.autoreset_mode == AutoresetMode.DISABLED and len(ended):
            raise ResetNeeded(
                f"Environments {ended[:8].tolist()} have ended; call "
                "reset(options={'reset_mask': terminated}) first, or choose another autoreset_mode."
            )
        lanes.step(actions)
        if len(ended):
            lanes.start(ended)
        rewards, terminated = lanes.rewards(), lanes.terminated()
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and terminated.any():
            infos = _final(lanes, terminated)
            lanes.start(np.flatnonzero(terminated))
        infos |= _with_masks(lanes.infos(), np.ones(self.num_envs, dtype=bool))
        return lanes.observations(), rewards, terminated, np.zeros(self.num_envs, dtype=bool), infos

    def render(self) -> tuple[Any, ...] | None:
        """One frame (or line of text) per lane, as a single environment would give."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode; pass render_mode='rgb_array'.")
            return None
        render = render_episode if self.render_mode == "rgb_array" else render_ansi
        return tuple(render(self.lanes.engine, self.lanes.lane(i)) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Drops the reference to the engine."""
        self._lanes = None


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    for member in AutoresetMode:
        if mode in (member, member.name, member.value):
            return member
    raise ValueError(f"autoreset_mode={mode!r} is unknown; choose one of {[m.name for m in AutoresetMode]}.")


def _check_reset_mask(mask: Any, num_envs: int) -> Bools:
    if mask is None:
        return np.ones(num_envs, dtype=bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(
            f"options['reset_mask'] must be a boolean numpy array, not {getattr(mask, 'dtype', type(mask))}."
        )
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask']={mask} must have the shape ({num_envs},) and hold at least one True.")
    return mask


def _with_masks(infos: dict[str, NDArray[Any]], mask: Bools) -> dict[str, Any]:
    """Gymnasium's vector infos: beside every key its mask."""
    return {name: value for k, v in infos.items() for name, value in ((k, v), (f"_{k}", mask.copy()))}


def _final(lanes: Lanes, ended: Bools) -> dict[str, Any]:
    """`final_obs` and `final_info` of the lanes that have ended, before they are restarted."""
    observations = lanes.observations()
    final_obs = np.full(len(ended), None, dtype=object)
    rows: Ints = np.flatnonzero(ended)
    for lane in rows:
        final_obs[lane] = observations[lane]
    return {
        "final_obs": final_obs,
        "_final_obs": ended.copy(),
        "final_info": _with_masks(lanes.infos(), ended),
        "_final_info": ended.copy(),
    }
