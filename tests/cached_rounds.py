"""Rounds of episodes over few images, and everything that they give, for tests of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import Actions

from prance_env import InferenceEngine, RewardConfig

REWARD = RewardConfig("potential", "mixed", 0.3, 0.1)
TOTAL = 24


def played_through(engine: InferenceEngine, actions: Actions, rounds: list[list[int]]) -> list[np.ndarray[Any, Any]]:
    """All numbers of some episodes, in rounds of several sizes."""
    numbers = []
    for index in rounds:
        episodes = engine.start(np.array(index))
        for decision in range(actions.shape[1]):
            numbers += [episodes.prob, episodes.prediction, episodes.label, engine.observe(episodes, "cls").numpy()]
            episodes = engine.step(episodes, actions[: len(index), decision], REWARD)
            numbers += [episodes.reward, episodes.prob, episodes.macs, episodes.index]
    return numbers


def assert_same(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> None:
    """Bit for bit."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def rounds(seed: int = 0, count: int = 12) -> list[list[int]]:
    """Images of successive starts: one, two, or many, some of them twice."""
    rng = np.random.default_rng(seed)
    return [rng.integers(TOTAL, size=rng.choice([1, 2, 3, 7, 20])).tolist() for _ in range(count)]
