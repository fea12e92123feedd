"""Stable-Baselines3 algorithms with defaults that learn here."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO}

# Mean action of an untrained policy, from 0 (everything at its minimum) to 1. The agent then starts from an accurate
# network and learns what it can leave out, rather than from a broken one.
INITIAL_ACTION = 0.8


def ppo_defaults(num_decisions: int, n_envs: int) -> dict[str, Any]:
    """PPO's arguments for episodes of `num_decisions` steps: rollouts of two, four mini-batches, no discount."""
    return {
        "n_steps": 2 * num_decisions,
        "batch_size": max(2 * num_decisions * n_envs // 4, 2),
        "n_epochs": 6,
        "learning_rate": LinearSchedule(1.5e-3, 1e-4, 1.0),
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "policy_kwargs": {"log_std_init": -1.2, "net_arch": [64, 64], "activation_fn": torch.nn.Tanh},
    }


def make_sb3(
    algorithm: str, env: VecEnv, seed: int | None = None, device: str = "cpu", **overrides: Any
) -> BaseAlgorithm:
    """An SB3 algorithm for an environment of this package.

    Args:
        algorithm: "ppo".
        env: From `make_sb3_env`.
        seed: Of the policy and of the environment.
        device: Of the policy.
        overrides: Arguments of the SB3 class that replace the defaults.

    Raises:
        ValueError: If the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r} is unknown; choose one of {sorted(ALGORITHMS)}.")
    num_decisions = env.get_attr("config")[0].space.num_decisions
    arguments = {**ppo_defaults(num_decisions, env.num_envs), **overrides}
    model = ALGORITHMS[algorithm]("MlpPolicy", env, seed=seed, device=device, **arguments)
    box = cast(gym.spaces.Box, env.action_space)
    mean = torch.as_tensor(box.low + INITIAL_ACTION * (box.high - box.low))
    cast(torch.nn.Linear, model.policy.action_net).bias.data.copy_(mean)
    return model
