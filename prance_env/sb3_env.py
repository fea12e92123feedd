"""The Stable-Baselines3 face: a `VecEnv` over the native batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from .vector_env import PranceVectorEnv


class PranceVecEnv(VecEnv):
    """SB3 `VecEnv` over a `PranceVectorEnv`.

    The info of a lane is filled only where its episode has just ended (it then also has `terminal_observation`);
    filling hundreds of dictionaries at every step would cost more than it tells.

    Args:
        envs: With autoreset mode SAME_STEP, which is what SB3 means by a vector environment.

    Raises:
        ValueError: If the autoreset mode is another one.
    """

    def __init__(self, envs: PranceVectorEnv) -> None:
        if envs.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"PranceVecEnv needs autoreset_mode=SAME_STEP, not {envs.autoreset_mode.name}.")
        self.envs = envs
        self.metadata = envs.metadata
        self._actions: NDArray[Any] | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begins new episodes; consumes what `seed` and `set_options` left."""
        seeds = None if all(s is None for s in self._seeds) else self._seeds
        observations, _ = self.envs.reset(seed=seeds, options=_merge_options(self._options))
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        if self._actions is None:
            raise RuntimeError("step_wait() was called before step_async().")
        observations, rewards, terminated, _, vector_info = self.envs.step(self._actions)
        self._actions = None
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if terminated.any():
            final_info = {k: v for k, v in vector_info["final_info"].items() if not k.startswith("_")}
            for lane in np.flatnonzero(terminated):
                infos[lane] = {k: v[lane] if v.ndim > 1 else v[lane].item() for k, v in final_info.items()}
                infos[lane]["terminal_observation"] = vector_info["final_obs"][lane]
                infos[lane]["TimeLimit.truncated"] = False
        return observations, rewards.astype(np.float32), terminated, infos

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """All lanes are one object, so an attribute can only be set for all of them.

        Raises:
            ValueError: If `indices` names only some lanes.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name!r} can be set for all environments only: they are computed as one batch.")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def make_sb3_env(
    env_id: str = "Prance-Digits-v0", n_envs: int = 256, seed: int | None = None, **env_kwargs: Any
) -> VecMonitor:
    """A native batch of environments, ready for Stable-Baselines3.

    Args:
        env_id: A registered id of this package, with or without "prance_env:" in front.
        n_envs: Number of lanes.
        seed: Lane i is seeded with `seed + i` at the first reset.
        env_kwargs: Arguments of the environment, see `PranceEnv`.

    Raises:
        ValueError: If the id is not one of this package's.
        TypeError: If an argument is unknown.
    """
    spec = gym.spec(env_id.removeprefix("prance_env:"))
    if spec.vector_entry_point != "prance_env.vector_env:PranceVectorEnv":
        raise ValueError(f"{env_id!r} is not an environment of prance_env; use SB3's make_vec_env for it.")
    envs = PranceVectorEnv(n_envs, AutoresetMode.SAME_STEP, **{**spec.kwargs, **env_kwargs})
    envs.spec = spec
    venv = VecMonitor(PranceVecEnv(envs))
    if seed is not None:
        venv.seed(seed)
    return venv


def _merge_options(options: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """SB3 keeps one dict per lane; the image index is the only option there is."""
    per_lane = list(options)
    if not any(per_lane):
        return None
    missing = [i for i, o in enumerate(per_lane) if "index" not in o]
    if missing:
        raise ValueError(f"set_options needs an 'index' for every environment; it is missing for {missing[:8]}.")
    return {"index": np.array([o["index"] for o in per_lane])}
