"""Many images at a time: the native Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle, seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from typing_extensions import Unpack

from supernet.arrays import Bools
from supernet.reading import checked_count, plain

from .arrays import as_array, to_device, to_host
from .checks import check_actions_of, check_options
from .described import takes_settings
from .lanes import Lanes
from .rendering import render_ansi, render_episode
from .settings import RENDER_MODES, EnvArguments, EnvSettings
from .snapshot import restore_snapshot, take_snapshot

OUTPUTS = ("numpy", "torch")


@takes_settings
class PranceVectorEnv(VectorEnv[Any, Any, Any], EzPickle):
    """N `PranceEnv` computed as one batch; lane i equals a `PranceEnv` that was seeded with `seed + i`.

    Episodes all have the same length, so all lanes end together unless they were reset apart.

    Args:
        num_envs: N.
        autoreset_mode: What happens when an episode ends: `AutoresetMode.NEXT_STEP` (Gymnasium's default: the following
            step ignores its action and resets), `SAME_STEP` (the step that ends the episode returns the next one's
            first observation, and `final_obs` and `final_info` in the infos), or `DISABLED` (call
            `reset(options={"reset_mask": ...})`). A name or a member.
        output: "numpy" or "torch": observations, rewards, flags and infos as tensors on `device`. Observations never
            leave the device then, floating-point numbers are float32, and `final_obs` is (num_envs, O) with the last
            observation of the lanes that `_final_obs` marks. Spaces are the same, and actions may be tensors or arrays.
        **arguments: The fields of `prance_env.EnvSettings`, where each is described.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of range.
        FileNotFoundError: If the checkpoint or the latency table is missing.
        ModuleNotFoundError: If a package that the data set needs is missing.
    """

    settings_class: ClassVar[type[EnvSettings]] = EnvSettings

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        **arguments: Unpack[EnvArguments],
    ) -> None:
        self._lanes: Lanes | None = None  # first of all: Gymnasium closes what could not be made, too
        num_envs = checked_count(num_envs, "num_envs")
        if plain(output) not in OUTPUTS:
            raise ValueError(f"output={output!r} is unknown; choose one of {OUTPUTS}.")
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": [*RENDER_MODES], "render_fps": 2, "autoreset_mode": self.autoreset_mode}
        self.settings = self.settings_class.from_arguments(arguments)
        given = {name: getattr(self.settings, name) for name in arguments}
        EzPickle.__init__(self, num_envs, autoreset_mode, output, **given)
        self.output = output
        self.num_envs = num_envs
        self.render_mode = self.settings.render_mode
        self.config = self.settings.config()
        self.single_observation_space, self.single_action_space = self.settings.spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs  # while there are no lanes
        self._seeds = [-1] * num_envs

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """What draws the images and prices of every lane, as in `SyncVectorEnv`."""
        generators = self._generators if self._lanes is None else self._lanes.generators
        generators[:] = [seeding.np_random()[0] if g is None else g for g in generators]
        return tuple(cast(list[np.random.Generator], generators))

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        """From now on these draw, one per lane, and `np_random_seed` is -1.

        Raises:
            ValueError: If it is not one generator per lane.
        """
        own = list(value) if isinstance(value, Sequence) else []
        if len(own) != self.num_envs or not all(isinstance(generator, np.random.Generator) for generator in own):
            raise ValueError(
                f"np_random={value!r} must be {self.num_envs} numpy.random.Generator, one per environment."
            )
        self._seeds = [-1] * self.num_envs
        (self._generators if self._lanes is None else self._lanes.generators)[:] = own

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The last seed of every lane; -1 where nobody has given one, or its generator comes from `load_state_dict`."""
        return tuple(self._seeds)

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
    ) -> tuple[Any, dict[str, Any]]:
        """Begins episodes.

        Args:
            seed: Lane i is seeded with `seed + i`, or with entry i of a sequence; None goes on with the old generators.
            options: May hold "index", the image of every lane ((num_envs,) integers); "reset_mask", (num_envs,) bool:
                only these lanes are reset; and, if the environment is cost-conditioned, "macs_weight", the price of
                these episodes, one number or (num_envs,). Later episodes draw theirs.

        Raises:
            ValueError: If a length or shape is wrong, `seed` is neither an integer nor a sequence, an option is
                unknown, or a price lies outside the range.
            TypeError: If `reset_mask` holds anything but bools.
            IndexError: If an image does not exist.
            gymnasium.error.ResetNeeded: If the first reset leaves environments out.
            gymnasium.error.Error: If a seed is negative, or one of a sequence no integer.
        """
        index, macs_weight = check_options(options, self.settings, (self.num_envs,), ("reset_mask",))
        mask = _check_reset_mask((options or {}).get("reset_mask"), self.num_envs)
        seeds = _seeds(seed, self.num_envs)
        if self._lanes is None and not mask.all():
            raise ResetNeeded("The first reset() must reset every environment; leave reset_mask out.")
        lanes = self._opened()
        rows = np.flatnonzero(mask)
        with lanes.undone_on_error():
            lanes.start(
                rows,
                None if index is None else index[mask],
                None if macs_weight is None else macs_weight[mask],
                None if seeds is None else [seeds[row] for row in rows],
            )
            returned = self._out((lanes.observations(), _with_masks(lanes.infos(), mask)))
        self._lanes, self.closed = lanes, False
        if seeds is not None:
            known = zip(self._seeds, seeds, mask, strict=True)
            self._seeds = [new if asked and new is not None else old for old, new, asked in known]
        return returned

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one decision in every lane (NEXT_STEP: in every lane that has not ended).

        Args:
            actions: (num_envs, A) array, or tensor on any device.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset, and with DISABLED if a lane has ended.
            ValueError: If the actions have another shape or hold NaN, or a reward function returns something else than
                finite numbers. All episodes are then as before.
        """
        lanes = self.lanes
        actions = check_actions_of(actions, self.action_space.shape or (), torch.device(self.settings.device))
        ended = np.flatnonzero(lanes.terminated())
        if self.autoreset_mode == AutoresetMode.DISABLED and len(ended):
            raise ResetNeeded(
                f"Environments {ended[:8].tolist()} have ended; call "
                "reset(options={'reset_mask': terminated}) first, or choose another autoreset_mode."
            )
        with lanes.undone_on_error():
            lanes.step(actions)
            if len(ended):
                lanes.start(ended)
            rewards, terminated = lanes.rewards(), lanes.terminated()
            infos: dict[str, Any] = {}
            if self.autoreset_mode == AutoresetMode.SAME_STEP and terminated.any():
                infos = _final(lanes, terminated)
                lanes.start(np.flatnonzero(terminated))
            observations = lanes.observations()
            infos |= _with_masks(lanes.infos(), np.ones(self.num_envs, dtype=bool))
            return self._out((observations, rewards, terminated, np.zeros(self.num_envs, dtype=bool), infos))

    def state_dict(self) -> dict[str, Any]:
        """Everything that coming results depend on: generators, images, prices, and how far each inference is.

        Plain data and CPU tensors, for `torch.save` and `torch.load(weights_only=True)`. On the same machine and
        device, results after `load_state_dict` are equal bit for bit to those without interruption. What the policy and
        its trainer draw is not part of it.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        return take_snapshot(self.lanes, self.autoreset_mode.name)

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Goes on where `state_dict` was called, in this or another process; needs no `reset` before.

        Returns:
            The current observations and infos, as `reset` would.

        Raises:
            ValueError: If the state is damaged or another environment's (number of lanes, autoreset mode, supernet and
                weights, images, reward, observation); nothing has changed then.
        """
        lanes = self._opened()
        with lanes.undone_on_error():
            restore_snapshot(lanes, self.autoreset_mode.name, state)
            everywhere = np.ones(self.num_envs, dtype=bool)
            returned = self._out((lanes.observations(), _with_masks(lanes.infos(), everywhere)))
        self._lanes, self.closed, self._seeds = lanes, False, [-1] * self.num_envs
        return returned

    def render(self) -> tuple[Any, ...] | None:
        """One frame (or line of text) per lane, as a single environment would give."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode; pass render_mode='rgb_array'.")
            return None
        render = render_episode if self.render_mode == "rgb_array" else render_ansi
        return tuple(render(self.lanes.engine, self.lanes.lane(i)) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Drops the reference to the engine, which stays for later environments (`prance_env.close_engines`).

        The lanes' generators stay as well, for a later `reset` without a seed.
        """
        if self._lanes is not None:
            self._generators, self._lanes = self._lanes.generators, None

    def _opened(self) -> Lanes:
        """The lanes; before the first reset and after `close` new ones, with the generators of before."""
        if self._lanes is not None:
            return self._lanes
        lanes = Lanes(self.settings, self.num_envs)
        lanes.generators = list(self._generators)
        return lanes

    def _out(self, returned: tuple[Any, ...]) -> Any:
        """What `reset` and `step` return, in the form that `output` asks for."""
        if self.output == "torch":
            return to_device(returned, torch.device(self.settings.device))
        returned = to_host(returned)
        infos = returned[-1]
        if "final_obs" in infos:  # Gymnasium has them as an object array with None where no episode ended
            rows = np.full(self.num_envs, None, dtype=object)
            for lane in np.flatnonzero(infos["_final_obs"]):
                rows[lane] = infos["final_obs"][lane].copy()
            infos["final_obs"] = rows
        return returned


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    for member in AutoresetMode:
        if plain(mode) in (member, member.name, member.value):
            return member
    raise ValueError(f"autoreset_mode={mode!r} is unknown; choose one of {[m.name for m in AutoresetMode]}.")


def _check_reset_mask(mask: Any, num_envs: int) -> Bools:
    if mask is None:
        return np.ones(num_envs, dtype=bool)
    array = as_array(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"options['reset_mask']={mask!r} must be an array or a list of {num_envs} bools.")
    if array.shape != (num_envs,) or not array.any():
        raise ValueError(f"options['reset_mask']={mask} must have the shape ({num_envs},) and hold at least one True.")
    return array


def _with_masks(infos: dict[str, NDArray[Any]], mask: Bools) -> dict[str, Any]:
    """Gymnasium's vector infos: beside every key its mask."""
    return {name: value for k, v in infos.items() for name, value in ((k, v), (f"_{k}", mask.copy()))}


def _final(lanes: Lanes, ended: Bools) -> dict[str, Any]:
    """`final_obs` and `final_info` of the lanes that have ended, before they are restarted."""
    return {
        "final_obs": lanes.observations(),
        "_final_obs": ended.copy(),
        "final_info": _with_masks(lanes.infos(), ended),
        "_final_info": ended.copy(),
    }


def _seeds(seed: Any, num_envs: int) -> list[int | None] | None:
    if seed is None:
        return None
    if isinstance(seed, int | np.integer):
        return _not_negative([int(seed) + i for i in range(num_envs)])
    if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str):
        raise ValueError(f"seed={seed!r} must be None, an integer or one per environment.")
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds were given for num_envs={num_envs}; pass one per environment.")
    return _not_negative([int(s) if isinstance(s, np.integer) else s for s in seed])


def _not_negative(seeds: list[int | None]) -> list[int | None]:
    """The seeds, also those of lanes that are not reset now, which nobody else would look at.

    Raises:
        gymnasium.error.Error: If one is negative.
    """
    if negative := [seed for seed in seeds if isinstance(seed, int) and seed < 0]:
        raise gym.error.Error(f"seed={negative[0]} must be greater or equal to zero, for every environment.")
    return seeds
