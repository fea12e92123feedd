"""Action and observation spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast, overload

import gymnasium as gym
import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor

from supernet import InferenceState, SearchSpace, Supernet, SupernetConfig
from supernet.arrays import Floats
from supernet.reading import check_value, plain

from .arrays import as_array
from .observations import OBSERVATIONS, PRICE, ObservationPart, Seen, values_of


def action_space(space: SearchSpace, normalize_actions: bool) -> gym.spaces.Box:
    """Box(-1, 1) or, not normalised, the paper's Box(0, 1): mlp_ratio and embed_dim of every block, then keep rates."""
    return gym.spaces.Box(-1.0 if normalize_actions else 0.0, 1.0, (space.action_size,), np.float32)


def action_names(space: SearchSpace) -> list[str]:
    """What every entry of an action is for; blocks are those of the coming group, counted from 1."""
    blocks = range(1, space.blocks_per_decision + 1)
    rates = ["keep_rate"] if space.num_rates == 1 else [f"keep_rate {i + 1}" for i in range(space.num_rates)]
    return [*(f"mlp_ratio {i}" for i in blocks), *(f"embed_dim {i}" for i in blocks), *rates]


@overload
def decode_actions(actions: NDArray[np.floating], normalize_actions: bool) -> NDArray[np.float64]: ...


@overload
def decode_actions(actions: Tensor, normalize_actions: bool) -> Tensor: ...


def decode_actions(actions: Any, normalize_actions: bool) -> Any:
    """Actions (B, A) of the Box to [0, 1]; what lies outside is clipped.

    Of a tensor nothing is asked, since it may lie on a GPU: NaN stays NaN there.

    Raises:
        ValueError: If an entry of an array is NaN.
    """
    if isinstance(actions, Tensor):
        values = actions.detach().double()
        return ((values + 1) / 2 if normalize_actions else values).clamp(0, 1)
    unit = np.asarray(actions, dtype=np.float64)
    check_actions(unit)
    return np.minimum(np.maximum((unit + 1) / 2 if normalize_actions else unit, 0), 1)


def check_actions(actions: NDArray[np.float64]) -> None:
    """Refuses actions (B, A) of which an entry is NaN.

    Raises:
        ValueError: If one is, with the lane.
    """
    if np.isnan(actions).any():
        lane = int(np.flatnonzero(np.isnan(actions).any(axis=1))[0])
        raise ValueError(
            f"The action of environment {lane} holds NaN: {actions[lane]}; check the policy for divergence."
        )


def encode_actions(unit: NDArray[np.float64], normalize_actions: bool) -> NDArray[np.float32]:
    """Inverse of `decode_actions`: [0, 1] to the Box."""
    return (2 * unit - 1 if normalize_actions else unit).astype(np.float32)


def observation_layout(config: SupernetConfig, observation: str, cost_conditioning: bool = False) -> dict[str, slice]:
    """Name and slice of every part of the observation vector, in order.

    Args:
        config: The supernet.
        observation: A name that `list_observations` has.
        cost_conditioning: Whether the price of computation is observed, as the last entry.

    Raises:
        ValueError: If `observation` is unknown.
    """
    layout, end = {}, 0
    for part in _parts(observation, cost_conditioning):
        layout[part.name] = slice(end, end + part.size(config))
        end = layout[part.name].stop
    return layout


def observation_space(config: SupernetConfig, observation: str, cost_conditioning: bool = False) -> gym.spaces.Box:
    """Flat float32 Box with finite bounds; the arguments are those of `observation_layout`."""
    parts = _parts(observation, cost_conditioning)
    low, high = (
        np.concatenate([np.full(part.size(config), bound(config), dtype=np.float32) for part, bound in bounds])
        for bounds in ([(part, part.low) for part in parts], [(part, part.high) for part in parts])
    )
    return gym.spaces.Box(low, high, dtype=np.float32)


def observe(
    net: Supernet,
    state: InferenceState,
    observation: str,
    full_macs: int,
    price: NDArray[np.float64] | Tensor | None = None,
) -> Tensor:
    """Observations (B, O) float32 on the state's device; `prance_env.observations` says what the parts are.

    Args:
        net: The supernet.
        state: The inference so far.
        observation: A name that `list_observations` has.
        full_macs: MACs of the full network.
        price: (B,) price of computation in [0, 1], the last entry of the observation; None leaves it out.

    Raises:
        ValueError: If the function of a part that a user has added gives another shape than (B, size).
    """
    seen = Seen(net, state, full_macs, price)
    return torch.cat([values_of(part, seen) for part in _parts(observation, price is not None)], dim=1).float()


def dict_space(layout: Mapping[str, slice], box: gym.spaces.Box) -> gym.spaces.Dict:
    """The space of observations in `box` that have been taken apart."""
    parts: dict[str, gym.Space[Any]] = {
        name: gym.spaces.Box(box.low[place], box.high[place], dtype=np.float32) for name, place in layout.items()
    }
    return gym.spaces.Dict(parts)


def take_apart(observations: Any, layout: Mapping[str, slice]) -> dict[str, Any]:
    """The named parts of (..., O) observations."""
    return {name: observations[..., place] for name, place in layout.items()}


class IntegerActions:
    """How integers become actions.

    Args:
        normalize_actions: Whether the actions are those of Box(-1, 1) instead of Box(0, 1).
        tables: One array per entry of the action: row i is what the integer i stands for, in [0, 1].
    """

    def __init__(self, normalize_actions: bool, tables: Sequence[Floats]) -> None:
        self._normalize, self.tables = normalize_actions, tables

    def decode(self, action: Any, shape: tuple[int, ...], space: gym.Space[Any]) -> NDArray[np.float32]:
        """Integers as actions of the Box.

        Args:
            action: (...) integers, or (..., A) of them where every entry has one of its own.
            shape: What its shape must be.
            space: What is shown in the message if it is not a member.

        Raises:
            ValueError: If the shape is another one, an entry is no integer, or it is out of range.
        """
        array = as_array(action)
        if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"The action is {array.dtype} of shape {array.shape}; expected integers of shape {shape}.")
        columns = [array] if len(self.tables) == 1 else np.moveaxis(array, -1, 0)
        if any((column < 0).any() or (column >= len(t)).any() for column, t in zip(columns, self.tables, strict=True)):
            raise ValueError(f"The action {array.tolist()} is out of range; expected a member of {space}.")
        unit = np.concatenate([t[column] for column, t in zip(columns, self.tables, strict=True)], axis=-1)
        return encode_actions(unit, self._normalize)


def multi_discrete(
    space: SearchSpace, normalize_actions: bool, keep_levels: int
) -> tuple[IntegerActions, gym.spaces.MultiDiscrete[Any]]:
    """How integers, one for every entry of the action, become actions, and the space of these integers.

    Args:
        space: The search space.
        normalize_actions: Whether the actions are those of Box(-1, 1).
        keep_levels: Number of keep rates, at least 2.

    Raises:
        ValueError: If `keep_levels` is below 2.
    """
    check_value(keep_levels := plain(keep_levels), Annotated[int, Ge(2), Le(2**16)], "keep_levels")
    n = space.blocks_per_decision
    counts = [len(space.mlp_ratios)] * n + [len(space.embed_dims)] * n
    counts += [keep_levels] * (space.action_size - len(counts))
    tables = [np.linspace(0, 1, count)[:, None] for count in counts]
    return IntegerActions(normalize_actions, tables), cast(Any, gym.spaces.MultiDiscrete(counts))


def _parts(observation: str, cost_conditioning: bool) -> tuple[ObservationPart, ...]:
    return (*OBSERVATIONS[observation], *([PRICE] if cost_conditioning else []))
