"""Which subnets a training step of a supernet trains beside the full network (the sandwich rule)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from supernet import SearchSpace, SubnetConfig
from supernet.subnet import SMALLEST_RATE


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


@dataclass(frozen=True)
class Limits:
    """What subnets may be at some moment of training.

    Attributes:
        embed_dims: Widths, ascending.
        mlp_ratios: Ascending.
        lowest_keep: Smallest keep rate.
    """

    embed_dims: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    lowest_keep: float


def limits_at(space: SearchSpace, progress: float, shrink: float, token_curriculum: float) -> Limits:
    """What subnets may be after a share of the steps.

    Args:
        space: The search space; in the end all of it is allowed.
        progress: Share of the steps that are done, in [0, 1).
        shrink: Share over which smaller sizes enter one after another, the nearest to the full ones first, MLP ratios
            and widths by turns (Once-for-All's progressive shrinking); 0: all are there from the beginning.
        token_curriculum: Share over which the smallest keep rate falls from 1 to the space's; 0: it is there.
    """
    sizes = (len(space.mlp_ratios) - 1, len(space.embed_dims) - 1)
    entered = sum(sizes) if progress >= shrink else int(progress / shrink * sum(sizes)) + 1
    turns = [kind for turn in range(max(sizes)) for kind in (0, 1) if turn < sizes[kind]][:entered]
    ratios, dims = turns.count(0) + 1, turns.count(1) + 1
    falls = 1.0 if progress >= token_curriculum else progress / token_curriculum
    lowest = max(space.min_keep_rate, SMALLEST_RATE)
    return Limits(space.embed_dims[-dims:], space.mlp_ratios[-ratios:], lowest + (1 - lowest) * (1 - falls))


def draw_smallest(space: SearchSpace, limits: Limits, rng: np.random.Generator) -> SubnetConfig:
    """One subnet, the narrowest that is allowed, with random keep rates."""
    shape = (space.num_decisions, space.blocks_per_decision)
    dims, ratios = np.full(shape, limits.embed_dims[0]), np.full(shape, limits.mlp_ratios[0])
    return _subnet(space, dims, ratios, _keep_rates(space, limits.lowest_keep, rng))


def draw_subnet(space: SearchSpace, limits: Limits, rng: np.random.Generator) -> SubnetConfig:
    """One random subnet, from small to large with equal chance.

    Half of them are narrower, by a random amount; the rest only drop patches. Half keep the groups after a random
    decision at full size, as Result-to-Go does.
    """
    shape = (space.num_decisions, space.blocks_per_decision)
    dims, ratios = np.full(shape, space.embed_dims[-1]), np.full(shape, space.mlp_ratios[-1])
    if rng.random() < 0.5:
        dims = rng.choice(limits.embed_dims[rng.integers(len(limits.embed_dims)) :], shape)
        ratios = rng.choice(limits.mlp_ratios[rng.integers(len(limits.mlp_ratios)) :], shape)
    keep = _keep_rates(space, limits.lowest_keep, rng)
    if rng.random() < 0.5:
        whole = slice(int(rng.integers(1, space.num_decisions + 1)), None)
        dims[whole], ratios[whole], keep[whole] = space.embed_dims[-1], space.mlp_ratios[-1], 1
    return _subnet(space, dims, ratios, keep)


def _keep_rates(space: SearchSpace, lowest: float, rng: np.random.Generator) -> np.ndarray:
    """(num_decisions, num_rates): each 1, uniform, or log-uniform."""
    shape = (space.num_decisions, space.num_rates)
    kinds = np.stack([np.ones(shape), rng.uniform(lowest, 1, shape), lowest ** rng.random(shape)])
    return np.take_along_axis(kinds, rng.integers(0, 3, (1, *shape)), axis=0)[0]


def _subnet(space: SearchSpace, dims: np.ndarray, ratios: np.ndarray, keep: np.ndarray) -> SubnetConfig:
    """One subnet from the sizes of the decided groups, (num_decisions, blocks or rates) each."""
    full = SubnetConfig.full(space)
    embed_dim, mlp_ratio = full.embed_dim.clone(), full.mlp_ratio.clone()
    decided = space.blocks(space.first_decided).start
    embed_dim[0, decided:], mlp_ratio[0, decided:] = torch.from_numpy(dims.ravel()), torch.from_numpy(ratios.ravel())
    return SubnetConfig(embed_dim, mlp_ratio, torch.from_numpy(keep).reshape(full.keep_rate.shape))
