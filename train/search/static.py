"""The strongest fixed subnets: an evolutionary search for the front of accuracy against MACs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prance_env.engine import InferenceEngine
from supernet import SearchSpace, SupernetConfig
from supernet.arrays import Bools, Floats, Ints
from supernet.macs import group_macs, head_macs, remaining_macs

from .memory import Memory
from .shared_runs import BATCH, CACHE_MB, Actions, SharedRuns, decided_plans

KEEP_LEVELS = 16
# Range of the price of the full network at which the search looks for parents: from 1 % of accuracy to all of it.
PRICE_RANGE = (0.01, 1.0)
STRUCTURED_SHARE = 5
NUM_PARENTS = 4
MUTATED = (1, 2, 5)
# With many images, a subnet is judged by one in SCREEN of them first, and goes on if it is hardly worse than the best.
SCREEN, SCREENED_FROM, SCREEN_MARGIN = 8, 1024, 0.01
KNOWN_IN_A_ROW = 1000
"""Children that were tried before, one after another, after which nothing new is expected of a small search space."""
SCREEN_PRICES = np.geomspace(*PRICE_RANGE, 16)


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

    def best_at(self, prices: Floats, rows: NDArray[np.bool_] | None = None) -> Ints:
        """(P,) the subnet with the highest accuracy - price * macs_fraction, for each of P prices.

        Args:
            prices: (P,) of the full network's MACs, in accuracy.
            rows: (N,) images to judge by; None: all.
        """
        accuracy = (self.correct if rows is None else self.correct[:, rows]).mean(axis=1)
        return (accuracy - prices[:, None] * self.macs_fraction).argmax(axis=1)

    def best_in_bands(self, count: int) -> dict[float, int]:
        """Of every band of MACs, 1/count of the full network's, the most accurate subnet, by the band's lower end."""
        accuracy, band = self.correct.mean(axis=1), np.floor(self.macs_fraction * count)
        return {float(b) / count: int(np.where(band == b, accuracy, -1).argmax()) for b in np.unique(band)}


def pareto_front(cost: NDArray[np.float64], gain: NDArray[np.float64]) -> Ints:
    """Indices of the points with more gain than every cheaper one, cheapest first."""
    order = np.lexsort((-gain, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gain[order][:-1]]))
    return order[gain[order] > best]


def correct_of_static(engine: InferenceEngine, index: Ints, actions: Actions, batch_size: int = BATCH) -> Bools:
    """(N,) whether one static subnet, given as (num_decisions, A), classifies the images `index` correctly."""
    return SharedRuns(engine, 0, batch_size).verdict(index, actions)[0]


def check_static(config: SupernetConfig) -> None:
    """Checks that static subnets have MACs.

    Raises:
        ValueError: If keep rates are thresholds, so that it follows from the image how many patches stay.
    """
    if config.token_mode.threshold:
        raise ValueError(
            f"token_mode={config.space.token_mode!r} has thresholds for keep rates: how many patches stay follows from "
            "the image, so that static subnets, which this command searches, have no MACs. Take a token mode that "
            "counts, such as 'prune'; prance eval judges agents under any."
        )


def macs_of_static(engine: InferenceEngine, actions: Actions) -> NDArray[np.float64]:
    """(S,) MACs that episodes of static subnets (S, num_decisions, A) spend, as a fraction of the full network."""
    config = engine.config
    begun = engine.full_macs - remaining_macs(config, config.space.first_decided, np.array([config.num_tokens]))
    plans = [*decided_plans(config, actions)]
    decided = sum(group_macs(config, plan) for plan in plans)
    return (begun + decided + head_macs(config, plans[-1].gives[:, -1], plans[-1].num_left)) / engine.full_macs


def evolve_static_front(
    engine: InferenceEngine,
    index: Ints,
    num_subnets: int = 300,
    seed: int = 0,
    progress: Callable[[int], object] = lambda tried: None,
    cache_mb: float = CACHE_MB,
    starts: Actions | None = None,
    memory: Memory | None = None,
) -> SearchResult:
    """Evolutionary search for static subnets.

    A fifth of the subnets is a structured start: members of the grid of one width, one ratio and two keep rates. Every
    other one descends from the best few at a price per MAC that is drawn anew, judged by all images, by the easier or
    by the harder half: one of them, crossed with another in half of the cases, with a few entries changed. Parents from
    the whole Pareto front would mostly be cheap subnets that nobody wants, and the search would stand still. With more
    than a thousand images, subnets that are clearly worse on an eighth of them are given up there and do not count.

    Args:
        engine: Supernet and images.
        index: Images to judge by; a validation set.
        num_subnets: How many to evaluate; fewer, if the search space has no more.
        seed: Fixes the search.
        progress: Called with the number of subnets tried so far.
        cache_mb: MiB for what subnets have in common; it makes the search faster and changes nothing else.
        starts: (K, num_decisions, A) subnets to try first, such as designs of `supernet.design`; None: none.
        memory: Where verdicts are kept, for a search that is interrupted; None: nowhere.

    Returns:
        All subnets that were tried.
    """
    rng = np.random.default_rng(seed)
    strata = _strata(engine.dataset.difficulty.numpy()[index])
    # Data sets are often sorted by class, so the images to screen by are drawn.
    order = np.random.default_rng(seed).permutation(len(index))
    screen = np.sort(order[: len(index) // SCREEN if len(index) > SCREENED_FROM else 0])
    rest = np.setdiff1d(order, screen)
    runs = SharedRuns(engine, cache_mb)

    def verdict(images: Ints, actions: Actions) -> Bools:
        return runs.verdict(images, actions)[0]

    with nullcontext(verdict) if memory is None else memory.judging("static", verdict) as judge:
        return _evolve(engine, Judged(index, strata, screen, rest, judge), num_subnets, rng, progress, starts)


@dataclass(frozen=True)
class Judged:
    """Images to judge by.

    Attributes:
        index: (N,) images.
        strata: (N,) which of them are in a part that parents are chosen by, for every part.
        screen: Which of them every subnet is judged by.
        rest: The others.
        judge: (M,) whether a subnet is right about images (M,).
    """

    index: Ints
    strata: list[Bools]
    screen: Ints
    rest: Ints
    judge: Callable[[Ints, Actions], Bools]


def _evolve(
    engine: InferenceEngine,
    by: Judged,
    num_subnets: int,
    rng: np.random.Generator,
    progress: Callable[[int], object],
    starts: Actions | None,
) -> SearchResult:
    space, index, screen = engine.config.space, by.index, by.screen
    screened = [np.intersect1d(screen, np.flatnonzero(rows)) for rows in by.strata]
    tried: list[Actions] = []
    macs, correct = np.empty(num_subnets), np.empty((num_subnets, len(index)), dtype=bool)
    accuracy = np.empty((len(by.strata), num_subnets))
    seen: set[bytes] = set()
    queue = _structured_start(space, num_subnets // STRUCTURED_SHARE, rng)
    queue = queue if starts is None else [*starts, *queue]
    known = 0
    while (done := len(tried)) < num_subnets and (queue or known < KNOWN_IN_A_ROW):
        actions = queue.pop(0) if queue else _child(space, tried, accuracy[:, :done], macs[:done], rng)
        key = np.round(actions, 6).tobytes()
        if key in seen:
            known += 1
            continue
        known = 0
        seen.add(key)
        macs[done] = macs_of_static(engine, actions[None])[0]
        if len(screen):
            correct[done, screen] = by.judge(index[screen], actions)
            if done and not _promising(macs[: done + 1], correct[: done + 1], screened):
                continue
        correct[done, by.rest] = by.judge(index[by.rest], actions)
        tried.append(actions)
        accuracy[:, done] = [correct[done, rows].mean() for rows in by.strata]
        progress(done + 1)
    return SearchResult(np.stack(tried), macs[:done], correct[:done])


def _strata(difficulty: NDArray[np.floating]) -> list[Bools]:
    """Which images subnets are judged by: all, the easier half, the harder half."""
    halves = difficulty <= np.median(difficulty), difficulty > np.median(difficulty)
    return [np.ones(len(difficulty), dtype=bool), *(rows for rows in halves if rows.any())]


def _child(
    space: SearchSpace,
    tried: list[Actions],
    accuracy: NDArray[np.float64],
    macs: NDArray[np.float64],
    rng: np.random.Generator,
) -> Actions:
    """A descendant of one or two of the best few at a drawn price, for drawn images out of the (strata, tried)."""
    price = np.exp(rng.uniform(*np.log(PRICE_RANGE)))
    score = accuracy[rng.integers(len(accuracy))] - price * macs
    parents = np.argsort(-score, kind="stable")[:NUM_PARENTS]
    actions = tried[rng.choice(parents)]
    if rng.random() < 0.5:
        actions = np.where(rng.random(actions.shape) < 0.5, actions, tried[rng.choice(parents)])
    return mutate(space, actions, rng)


def _promising(macs: Floats, correct: NDArray[np.bool_], parts: list[Ints]) -> bool:
    """Whether the last subnet is nearly the best at some price, on some of the parts of the images."""
    for part in parts:
        scores = correct[:, part].mean(axis=1) - SCREEN_PRICES[:, None] * macs
        if (scores[:, -1] >= scores[:, :-1].max(axis=1) - SCREEN_MARGIN).any():
            return True
    return False


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


def mutate(space: SearchSpace, actions: Actions, rng: np.random.Generator) -> Actions:
    """Actions (T, A), of which one, two or five entries, on average, are a choice up or down; keep rates by a normal
    step.
    """
    n = space.blocks_per_decision
    sizes = np.repeat([1 / max(len(space.mlp_ratios) - 1, 1), 1 / max(len(space.embed_dims) - 1, 1)], n)
    rates = slice(2 * n, None)
    noise = rng.choice([-1.0, 1.0], actions.shape)
    noise[:, : 2 * n] *= sizes
    noise[:, rates] = 0.15 * rng.standard_normal(noise[:, rates].shape)
    moved = np.clip(actions + noise, 0, 1)
    actions = np.where(rng.random(actions.shape) < rng.choice(MUTATED) / actions.size, moved, actions)
    actions[:, rates] = np.round(actions[:, rates] * KEEP_LEVELS) / KEEP_LEVELS
    return actions
