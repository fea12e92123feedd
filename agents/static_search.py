"""The strongest fixed subnets: an evolutionary search for the front of accuracy against MACs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prance_env.engine import InferenceEngine, Ints
from supernet import GroupChoice, SearchSpace, SubnetConfig

Actions = NDArray[np.float64]
KEEP_LEVELS = 16


@dataclass(frozen=True)
class SearchResult:
    """Every subnet that was tried.

    Attributes:
        actions: (S, num_decisions, A) in [0, 1]; see `SubnetConfig.from_actions`.
        macs_fraction: (S,) of the full network.
        correct: (S, N) which of the N images it classifies correctly.
    """

    actions: Actions
    macs_fraction: NDArray[np.float64]
    correct: NDArray[np.bool_]

    def front(self, rows: NDArray[np.bool_] | None = None) -> Ints:
        """Subnets that no other beats in both accuracy and MACs, cheapest first.

        Args:
            rows: (N,) images to judge by; None: all.
        """
        accuracy = (self.correct if rows is None else self.correct[:, rows]).mean(axis=1)
        return pareto_front(self.macs_fraction, accuracy)


def pareto_front(cost: NDArray[np.float64], gain: NDArray[np.float64]) -> Ints:
    """Indices of the points with more gain than every cheaper one, cheapest first."""
    order = np.lexsort((-gain, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gain[order][:-1]]))
    return order[gain[order] > best]


def correct_of_static(
    engine: InferenceEngine, index: Ints, actions: Actions, batch_size: int = 512
) -> NDArray[np.bool_]:
    """(N,) whether one static subnet, given as (num_decisions, A), classifies the images `index` correctly."""
    space = engine.config.space
    out = []
    with torch.inference_mode():
        for begin in range(0, len(index), batch_size):
            episodes = engine.start(index[begin : begin + batch_size])
            state = episodes.state
            for action in actions:
                choice = GroupChoice.from_actions(space, torch.from_numpy(action)[None].expand(len(state), -1))
                state = engine.net.run_group(state, state.group, choice)
            out.append(engine.net.forward_head(state).argmax(-1).cpu().numpy() == episodes.label)
    return np.concatenate(out)


def macs_of_static(engine: InferenceEngine, actions: Actions) -> NDArray[np.float64]:
    """(S,) MACs of static subnets (S, num_decisions, A), as a fraction of the full network."""
    subnets = SubnetConfig.from_actions(engine.config.space, torch.from_numpy(actions))
    return engine.net.macs(subnets).numpy() / engine.full_macs


def evolve_static_front(
    engine: InferenceEngine,
    index: Ints,
    num_subnets: int = 300,
    seed: int = 0,
    progress: Callable[[int], object] = lambda tried: None,
) -> SearchResult:
    """Evolutionary search for static subnets.

    A third of the subnets are a structured start (all combinations of one width, one ratio and one keep rate are
    sampled from coarse to fine); then parents are drawn from the current fronts of all images and of each stratum,
    crossed with another parent in half of the cases, and mutated.

    Args:
        engine: Supernet and images.
        index: Images to judge by; a validation set.
        num_subnets: How many to evaluate.
        seed: Of the search.
        progress: Called with the number of subnets tried so far.

    Returns:
        All subnets that were tried.
    """
    space = engine.config.space
    rng = np.random.default_rng(seed)
    difficulty = engine.dataset.difficulty.numpy()[index]
    halves = difficulty <= np.median(difficulty), difficulty > np.median(difficulty)
    strata = [None, *(rows for rows in halves if rows.any())]
    tried: list[Actions] = []
    macs: list[float] = []
    correct: list[NDArray[np.bool_]] = []
    seen: set[bytes] = set()
    queue = _structured_start(space, num_subnets // 3, rng)
    while len(tried) < num_subnets:
        if queue:
            actions = queue.pop(0)
        else:
            result = SearchResult(np.stack(tried), np.array(macs), np.stack(correct))
            front = result.front(strata[rng.integers(len(strata))])
            actions = tried[rng.choice(front)].copy()
            if rng.random() < 0.5:
                other = tried[rng.choice(front)]
                actions = np.where(rng.random(actions.shape) < 0.5, actions, other)
            actions = _mutate(space, actions, rng)
        key = np.round(actions, 6).tobytes()
        if key in seen:
            continue
        seen.add(key)
        tried.append(actions)
        macs.append(macs_of_static(engine, actions[None])[0])
        correct.append(correct_of_static(engine, index, actions))
        progress(len(tried))
    return SearchResult(np.stack(tried), np.array(macs), np.stack(correct))


def _structured_start(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Actions]:
    """Full, min, then random members of the grid width x ratio x first keep rate x later keep rate."""
    start = [np.ones((space.num_decisions, space.action_size)), np.zeros((space.num_decisions, space.action_size))]
    widths, ratios = np.linspace(0, 1, len(space.embed_dims)), np.linspace(0, 1, len(space.mlp_ratios))
    grid = [
        _uniform(space, width, ratio, first, later)
        for width in widths[len(widths) // 2 :]
        for ratio in ratios
        for first in (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
        for later in (1.0, 0.6, 0.2)
    ]
    return (start + [grid[i] for i in rng.permutation(len(grid))])[: max(count, 2)]


def _uniform(space: SearchSpace, width: float, ratio: float, first_keep: float, later_keep: float) -> Actions:
    actions = np.full((space.num_decisions, space.action_size), width)
    actions[:, : space.blocks_per_decision] = ratio
    actions[:, -space.num_rates :] = later_keep
    actions[0, -space.num_rates :] = first_keep
    return actions


def _mutate(space: SearchSpace, actions: Actions, rng: np.random.Generator) -> Actions:
    """Moves each entry with probability 1/4 by a choice up or down; keep rates by a normal step."""
    actions = actions.copy()
    n = space.blocks_per_decision
    sizes = np.repeat([1 / max(len(space.mlp_ratios) - 1, 1), 1 / max(len(space.embed_dims) - 1, 1)], n)
    rates = slice(2 * n, None)
    noise = rng.choice([-1.0, 1.0], actions.shape)
    noise[:, : 2 * n] *= sizes
    noise[:, rates] = 0.15 * rng.standard_normal(noise[:, rates].shape)
    moved = np.clip(actions + noise, 0, 1)
    actions = np.where(rng.random(actions.shape) < 0.25, moved, actions)
    actions[:, rates] = np.round(actions[:, rates] * KEEP_LEVELS) / KEEP_LEVELS
    return actions
