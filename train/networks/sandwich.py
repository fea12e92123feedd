"""Which subnets a training step of a supernet trains beside the full network (the sandwich rule)."""

from __future__ import annotations

import numpy as np
import torch

from supernet import SearchSpace, SubnetConfig


def random_subnet(space: SearchSpace, batch_size: int, rng: np.random.Generator) -> SubnetConfig:
    """One random subnet for a whole batch, from small to large with equal chance.

    Half of them are narrower, by a random amount; the rest only drop patches. Half keep the groups after a random
    decision at full size, as Result-to-Go does.
    """
    actions = np.ones((space.num_decisions, space.action_size))
    if rng.random() < 0.5:
        n = space.blocks_per_decision
        low = rng.random(2)
        actions[:, :n] = rng.uniform(low[0], 1, (space.num_decisions, n))
        actions[:, n : 2 * n] = rng.uniform(low[1], 1, (space.num_decisions, n))
    actions[:, -1] = random_keep_actions(space, rng)
    if rng.random() < 0.5:
        actions[rng.integers(1, space.num_decisions + 1) :] = 1
    return SubnetConfig.from_actions(space, torch.from_numpy(actions)[None]).expand(batch_size)


def random_keep_actions(space: SearchSpace, rng: np.random.Generator) -> np.ndarray:
    """A keep action per decision: all patches, uniform, or log-uniform."""
    low = space.min_keep_rate
    keep = np.stack(
        [np.ones(space.num_decisions), rng.uniform(low, 1, space.num_decisions), low ** rng.random(space.num_decisions)]
    )[rng.integers(0, 3, space.num_decisions), np.arange(space.num_decisions)]
    return (keep - low) / (1 - low)


def min_subnet(space: SearchSpace, batch_size: int, rng: np.random.Generator) -> SubnetConfig:
    """The narrowest subnet with random keep rates."""
    actions = np.zeros((space.num_decisions, space.action_size))
    actions[:, -1] = random_keep_actions(space, rng)
    return SubnetConfig.from_actions(space, torch.from_numpy(actions)[None]).expand(batch_size)
