"""Playing some steps in a vector environment, and what they were worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from prance_env.arrays import to_host

from .policy import GaussianPolicy


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments, on the policy's device.

    Attributes:
        observations: (T + 1, N, O) float32, the last one follows the last step.
        actions: (T, N, A) as sampled, not clipped.
        rewards: (T, N) float32.
        terminated: (T, N) bool.
        truncated: (T, N) bool.
        final_observations: (K, O) last observations of the K truncated episodes, in the order of `truncated.nonzero()`.
        final_infos: One entry per key of `final_info` that holds numbers: those of the episodes that have ended.
        observation: (N, O) where the environment stands, as it gave it.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observations: Tensor
    final_infos: dict[str, NDArray[Any]] = field(default_factory=dict)
    observation: Any = None


@torch.no_grad()
def collect(
    env: VectorEnv[Any, Any, Any],
    policy: GaussianPolicy,
    observation: Any,
    n_steps: int,
    generator: torch.Generator,
) -> Rollout:
    """Plays `n_steps` steps with sampled actions.

    Args:
        env: With autoreset mode SAME_STEP.
        policy: Samples actions; the environment gets them clipped to its box.
        observation: (N, O) where the environment stands; if it is a tensor, the environment gets tensors, too.
        n_steps: T.
        generator: Draws the actions.
    """
    device = policy.log_std.device
    on_device = isinstance(observation, Tensor)
    observations, actions, rewards = [_tensor(observation, device)], [], []
    terminated, truncated, finals = [], [], []
    for _ in range(n_steps):
        actions.append(policy.sample(observations[-1], generator))
        clipped = policy.clip(actions[-1])
        observation, reward, ends, cuts, infos = env.step(clipped if on_device else clipped.cpu().numpy())
        observations.append(_tensor(observation, device))
        rewards.append(_tensor(reward, device))
        terminated.append(torch.as_tensor(ends, device=device))
        truncated.append(torch.as_tensor(cuts & ~ends, device=device))
        if "final_info" in infos or "final_obs" in infos:
            finals.append((infos.get("final_obs"), infos.get("final_info", {}), cuts & ~ends, ends | cuts))
    final_observations, final_infos = _finals(finals, device)
    size = observations[0].shape[1]
    return Rollout(
        observations=torch.stack(observations),
        actions=torch.stack(actions),
        rewards=torch.stack(rewards),
        terminated=torch.stack(terminated),
        truncated=torch.stack(truncated),
        final_observations=torch.stack(final_observations) if final_observations else torch.empty(0, size).to(device),
        final_infos=_concatenate(final_infos),
        observation=observation,
    )


def _tensor(values: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device)


def _finals(
    finals: list[tuple[Any, dict[str, Any], Any, Any]], device: torch.device
) -> tuple[list[Tensor], list[dict[str, NDArray[Any]]]]:
    """What the steps at which episodes ended are remembered by.

    Args:
        finals: Of every such step the last observations, the last infos, which episodes were cut, and which ended.
        device: Where observations are wanted.

    Returns:
        Observations of the episodes that were cut, and of every step all infos that are one number or more per
        environment, of the episodes that ended.
    """
    # Fetched together after the rollout, so that none of its steps waits for a device.
    infos = to_host([_numbers(final) for _, final, _, _ in finals])
    masks = to_host([(cut, ended) for _, _, cut, ended in finals])
    observations, rows = [], []
    for (seen, *_), info, (cut, ended) in zip(finals, infos, masks, strict=True):
        if cut.any():
            observations += [_tensor(seen[lane], device) for lane in np.flatnonzero(cut).tolist()]
        rows.append({k: v[ended] for k, v in info.items()})
    return observations, rows


def _numbers(infos: dict[str, Any]) -> dict[str, Any]:
    """The infos that are one number or more per environment."""
    picked = {k: v for k, v in infos.items() if not k.startswith("_") and isinstance(v, np.ndarray | Tensor)}
    return {k: v for k, v in picked.items() if isinstance(v, Tensor) or v.dtype.kind in "bif"}


def _concatenate(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    shared = set.intersection(*(set(r) for r in rows)) if rows else set()
    return {key: np.concatenate([r[key] for r in rows]) for key in sorted(shared)}


@torch.no_grad()
def advantages_of(rollout: Rollout, policy: GaussianPolicy, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages (T, N) and values (T, N) of a rollout.

    A truncated episode is worth what its last observation promises, a terminated one nothing more.
    """
    values = policy.value(rollout.observations)
    next_values = values[1:].masked_fill(rollout.terminated, 0)
    if rollout.truncated.any():
        next_values[rollout.truncated] = policy.value(rollout.final_observations)
    ends = rollout.terminated | rollout.truncated
    return gae(rollout.rewards, values[:-1], next_values, ends, gamma, gae_lambda), values[:-1]


def gae(rewards: Tensor, values: Tensor, next_values: Tensor, ends: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates (T, N), each from its own episode only (arXiv 1506.02438, eq. 16).

    Args:
        rewards: (T, N).
        values: (T, N) of the states acted in.
        next_values: (T, N) of the states reached; 0 where the episode has terminated.
        ends: (T, N) bool, whether the step is the last one of its episode.
        gamma: Discount.
        gae_lambda: Weight of longer estimates.
    """
    deltas = rewards + gamma * next_values - values
    decay = gamma * gae_lambda * (~ends).to(deltas.dtype)
    out = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        running = deltas[t] + decay[t] * running
        out[t] = running
    return out
