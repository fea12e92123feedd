"""Action and observation spaces."""

from __future__ import annotations

from typing import Any, overload

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet import InferenceState, SearchSpace, Supernet, SupernetConfig

from .observations import OBSERVATIONS, PRICE, ObservationPart, Seen


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
    if np.isnan(unit).any():
        lane = int(np.flatnonzero(np.isnan(unit).any(axis=1))[0])
        raise ValueError(f"The action of environment {lane} holds NaN: {unit[lane]}; check the policy for divergence.")
    return np.clip((unit + 1) / 2 if normalize_actions else unit, 0, 1)


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
    """
    seen = Seen(net, state, full_macs, price)
    return torch.cat([part.values(seen) for part in _parts(observation, price is not None)], dim=1).float()


def _parts(observation: str, cost_conditioning: bool) -> tuple[ObservationPart, ...]:
    return (*OBSERVATIONS[observation], *([PRICE] if cost_conditioning else []))
