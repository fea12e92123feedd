"""The Stable-Baselines3 face: a `VecEnv` over the native batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any, cast

import gymnasium as gym
import numpy as np
import torch
from annotated_types import Ge, Lt
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from typing_extensions import Unpack

from supernet.reading import check_value, checked_count, plain

from .naming import check_bare, check_names, spec_of
from .settings import EnvArguments
from .vector_env import PranceVectorEnv

Seed = Annotated[int, Ge(0), Lt(2**63)] | None


class PranceVecEnv(VecEnv):
    """SB3 `VecEnv` over a `PranceVectorEnv`.

    The info of a lane is filled only where its episode has just ended (it then also has `terminal_observation`);
    filling hundreds of dictionaries at every step would cost more than it tells.

    All lanes are one object: `get_attr` and `env_method` ask it once and repeat the answer for every lane asked about,
    and `set_attr` is for all lanes. What the wrappers around the batch have comes first, as with SB3's own; the spaces
    are those of one lane.

    Args:
        envs: With autoreset mode SAME_STEP, which is what SB3 means by a vector environment, and numpy output; may be
            wrapped by `prance_env.wrappers`.

    Attributes:
        monitor: What sums up episodes around it, as `make_sb3_env` puts it there; its sums are part of a state.

    Raises:
        TypeError: If there is no `PranceVectorEnv` inside.
        ValueError: If the autoreset mode or the output is another one.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        inner = envs.unwrapped
        if not isinstance(inner, PranceVectorEnv):
            raise TypeError(f"PranceVecEnv needs a PranceVectorEnv, not {type(inner).__name__}.")
        if inner.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"PranceVecEnv needs autoreset_mode=SAME_STEP, not {inner.autoreset_mode.name}.")
        if inner.output != "numpy":
            raise ValueError(f"PranceVecEnv needs output='numpy', not {inner.output!r}: SB3 knows no tensors here.")
        self.envs, self._inner = envs, inner
        self.spec = inner.spec
        self.monitor: VecMonitor | None = None
        self._pending_actions: NDArray[Any] | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = {**self.metadata, "render_fps": inner.metadata["render_fps"]}

    def reset(self) -> VecEnvObs:
        """Begins new episodes; consumes what `seed` and `set_options` left.

        Raises:
            ValueError: If the options are not the same keys for every lane, there is a `reset_mask`, or as in
                `PranceVectorEnv.reset`.
        """
        options, seeds = list(self._options), None if all(s is None for s in self._seeds) else list(self._seeds)
        self._reset_options()  # first, so that options that are refused do not stand in the way of later resets
        if any("reset_mask" in o for o in options):  # and monitors begin to count anew in all of them
            raise ValueError("SB3's reset() resets every environment; reset_mask is one of PranceVectorEnv.reset.")
        observations, _ = self.envs.reset(seed=cast(Any, seeds), options=_merge_options(options))
        self._reset_seeds()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keeps the actions for `step_wait`.

        Raises:
            ValueError: If there are none.
        """
        if actions is None:
            raise ValueError(f"The actions are None; expected numbers of shape {self.envs.action_space.shape}.")
        self._pending_actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes the decisions.

        Raises:
            RuntimeError: If `step_async` was not called before.
            ValueError: As `PranceVectorEnv.step`.
        """
        actions, self._pending_actions = self._pending_actions, None
        if actions is None:
            raise RuntimeError("step_wait() was called before step_async().")
        observations, rewards, terminated, _, vector_info = self.envs.step(actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if terminated.any():
            final_info = {k: v for k, v in vector_info["final_info"].items() if not k.startswith("_")}
            for lane in np.flatnonzero(terminated):
                infos[lane] = {k: v[lane] if v.ndim > 1 else v[lane].item() for k, v in final_info.items()}
                infos[lane]["terminal_observation"] = vector_info["final_obs"][lane]
                infos[lane]["TimeLimit.truncated"] = False
        return observations, rewards.astype(np.float32), terminated, infos

    def state_dict(self) -> dict[str, Any]:
        """See `PranceVectorEnv.state_dict`; the sums of the monitor are part of it, and what `seed` and `set_options`
        announced is not."""
        sums = {} if self.monitor is None else {"monitor": _sums(self.monitor)}
        return {**self._inner.state_dict(), **sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `PranceVectorEnv.load_state_dict`; a state without sums, from another face, begins them anew."""
        sums = state.get("monitor") if isinstance(state, dict) else None
        returns, lengths, episodes = _read_sums(sums, self.num_envs)
        self._inner.load_state_dict(state)
        if self.monitor is not None:
            self.monitor.episode_returns, self.monitor.episode_lengths = returns, lengths
            self.monitor.episode_count = self.monitor.episode_count if episodes is None else episodes

    def close(self) -> None:
        """Drops the reference to the engine; may be called twice."""
        self.envs.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One frame per lane."""
        return self.envs.render() or [None] * self.num_envs  # type: ignore[return-value]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the batch or of a wrapper around it, once per lane asked about."""
        lanes, holder = self._checked(indices), self._holder(attr_name)
        return [getattr(holder, attr_name) for _ in lanes]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """All lanes are one object, so an attribute can only be set for all of them.

        Raises:
            ValueError: If `indices` names only some lanes.
        """
        if len(set(self._checked(indices))) != self.num_envs:
            raise ValueError(f"{attr_name!r} can be set for all environments only: they are computed as one batch.")
        setattr(self._holder(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of the batch or of a wrapper around it once, and repeats its result for every lane asked
        about."""
        lanes = self._checked(indices)
        result = getattr(self._holder(method_name), method_name)(*method_args, **method_kwargs)
        return [result for _ in lanes]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False: single-environment wrappers cannot be around a lane."""
        return [False for _ in self._checked(indices)]

    def _holder(self, name: str) -> Any:
        """Who has this attribute: the outermost wrapper that does, or else the batch; of the spaces of a lane, this."""
        if name in ("observation_space", "action_space"):
            return self
        env: Any = self.envs
        # Properties with which Gymnasium's wrappers hand on what is not theirs.
        shown = vars(VectorWrapper).get(name)
        handed_on = isinstance(shown, property) and shown.fset is None
        while env is not self._inner and name not in vars(env):
            own = getattr(type(env), name, env)
            if own is not env and not (handed_on and own is shown):
                break
            env = env.env
        return env

    def _checked(self, indices: VecEnvIndices) -> list[int]:
        lanes = list(self._get_indices(indices))
        if bad := [lane for lane in lanes if not -self.num_envs <= lane < self.num_envs]:
            raise IndexError(f"indices={bad} do not exist; environments are 0..{self.num_envs - 1}.")
        return lanes


def make_sb3_env(
    env_id: str = "Prance-Digits-v0",
    n_envs: int = 256,
    seed: int | None = None,
    wrappers: Sequence[Callable[[VectorEnv[Any, Any, Any]], VectorEnv[Any, Any, Any]]] = (),
    **env_kwargs: Unpack[EnvArguments],
) -> VecMonitor:
    """A native batch of environments, ready for Stable-Baselines3.

    Args:
        env_id: A registered id of this package, with or without "prance_env:" in front.
        n_envs: Number of lanes.
        seed: Lane i is seeded with `seed + i` at the first reset.
        wrappers: Vector wrappers of `prance_env.wrappers`, inner first.
        **env_kwargs: Arguments of the environment, the fields of `prance_env.EnvSettings`.

    Raises:
        ValueError: If the id is not one of this package's or has a time limit or wrappers, or an argument is out of
            range.
        gymnasium.error.Error: If nobody has registered the id.
        TypeError: If an argument is unknown.
        FileNotFoundError: If the checkpoint or the latency table is missing.
        ModuleNotFoundError: If a package that the data set needs is missing.
    """
    n_envs = checked_count(n_envs, "n_envs")
    check_value(seed := plain(seed), Seed, "seed")
    if not isinstance(wrappers, Sequence) or not all(callable(wrapper) for wrapper in wrappers):
        raise ValueError(f"wrappers={wrappers!r} must be a list of vector wrappers, such as [VectorDictObservation].")
    spec = spec_of(env_id)
    if spec.vector_entry_point != "prance_env.vector_env:PranceVectorEnv":
        raise ValueError(f"{env_id!r} is not an environment of prance_env; use SB3's make_vec_env for it.")
    check_bare(spec)
    check_names(env_kwargs, [f.name for f in fields(PranceVectorEnv.settings_class)])
    arguments = cast(EnvArguments, {**spec.kwargs, **env_kwargs})
    envs = PranceVectorEnv(n_envs, AutoresetMode.SAME_STEP, **arguments)
    envs.spec = spec
    wrapped: VectorEnv[Any, Any, Any] = envs
    for wrapper in wrappers:
        wrapped = wrapper(wrapped)
    face = PranceVecEnv(wrapped)
    venv = face.monitor = VecMonitor(face)
    if seed is not None:
        venv.seed(seed)
    return venv


def _sums(monitor: VecMonitor) -> dict[str, Any]:
    """Of the running episodes, and how many have ended, as plain data and tensors."""
    return {
        "returns": torch.from_numpy(monitor.episode_returns.copy()),
        "lengths": torch.from_numpy(monitor.episode_lengths.copy()),
        "episodes": monitor.episode_count,
    }


def _read_sums(sums: Any, num_envs: int) -> tuple[NDArray[np.float32], NDArray[np.int32], int | None]:
    """Arrays of one's own (num_envs,) of what `_sums` gave; zeros and None for None.

    Raises:
        ValueError: If it is something else.
    """
    if sums is None:
        return np.zeros(num_envs, dtype=np.float32), np.zeros(num_envs, dtype=np.int32), None
    try:
        returns, lengths = (np.array(sums[k].numpy()) for k in ("returns", "lengths"))
        episodes = operator.index(sums["episodes"])
        kinds = [(x.dtype, x.shape) for x in (returns, lengths)]
        if kinds != [(np.float32, (num_envs,)), (np.int32, (num_envs,))]:
            raise ValueError(f"returns and lengths are {kinds}")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"The state is damaged: its monitor holds no sums of {num_envs} episodes ({type(e).__name__}: {e}); pass "
            "what state_dict() returned."
        ) from e
    return returns, lengths, episodes


def _merge_options(options: list[dict[str, Any]]) -> dict[str, Any] | None:
    """SB3 keeps one dict per lane; the native batch takes one array per key."""
    keys = list(dict.fromkeys(key for o in options for key in o))
    for key in keys:
        missing = [i for i, o in enumerate(options) if key not in o]
        if missing:
            raise ValueError(f"set_options needs {key!r} for every environment; it is missing for {missing[:8]}.")
    return {key: np.array([o[key] for o in options]) for key in keys} or None
