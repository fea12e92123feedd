"""A task that PrancePPO learns in seconds, and small things around it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from agents import PrancePPO, PrancePPOConfig

OBSERVATION, ACTION = 3, 2
BOX = gym.spaces.Box(-1, 1, (ACTION,), np.float32)
QUICK = PrancePPOConfig.tuned(n_envs=16, n_steps=4, batch_size=16, hidden=(16,))


class Guess(VectorEnv[Any, Any, Any]):
    """Episodes of random length; a step earns minus the squared distance of the action from half the observation."""

    def __init__(self, num_envs: int = 16, end: float = 1.0, cut: float = 0.0) -> None:
        self.num_envs, self.end, self.cut = num_envs, end, cut
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Box(-1, 1, (OBSERVATION,), np.float32)
        self.single_action_space = BOX
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(BOX, num_envs)
        self.seeds: list[Any] = []
        self.received: list[Any] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.generator = np.random.default_rng(seed)
        self.observation = self._draw()
        return self.observation, {}

    def _draw(self) -> Any:
        return self.generator.uniform(-1, 1, (self.num_envs, OBSERVATION)).astype(np.float32)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.received.append(actions)
        rewards = -np.square(actions - self.observation[:, :ACTION] / 2).sum(1)
        draw = self.generator.random((2, self.num_envs))
        terminated, truncated = draw[0] < self.end, draw[1] < self.cut
        ends = terminated | truncated
        infos: dict[str, Any] = {}
        if ends.any():
            final = np.full(self.num_envs, None, dtype=object)
            for lane in np.flatnonzero(ends):
                final[lane] = self.observation[lane] + 100
            success, tokens = self.observation[:, 0] > 0, np.arange(self.num_envs) + 1
            infos = {"final_obs": final, "_final_obs": ends, "_final_info": ends}
            infos["final_info"] = {"is_success": success, "_is_success": ends, "num_tokens": tokens}
            infos["final_info"]["macs_fraction"] = np.where(ends, 0.5, 99.0)
        self.observation = self._draw()
        return self.observation, rewards, terminated, truncated, infos


def state_of(agent: PrancePPO) -> dict[str, torch.Tensor]:
    """Weights."""
    return {k: v.clone() for k, v in agent.policy.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


def random_rollout(steps: int, envs: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Episodes that begin and end at different steps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, envs)
    rewards, values, after = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    ends = torch.rand(shape, generator=generator) < 0.3
    next_values = torch.cat([values[1:], after[-1:]]).masked_fill(ends, 0)
    return {"rewards": rewards, "values": values, "next_values": next_values, "ends": ends}
