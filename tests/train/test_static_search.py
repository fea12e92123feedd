"""The search for static subnets: who has children, by which images, and which subnets are given up early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import make_engine, random_net
from noise_envs import TINY

from train.search import static
from train.search.static import SearchResult, evolve_static_front


def test_children_descend_from_the_four_best_at_the_drawn_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "mutate", lambda space, actions, rng: actions)
    monkeypatch.setattr(static, "PRICE_RANGE", (0.1, 0.1))
    tried = [np.full((2, 3), float(number)) for number in range(10)]
    # By the first images the dear ones are better, though not by what they cost; by the second those in the middle.
    middle = 0.9 - 0.1 * abs(np.arange(10) - 5.5)
    accuracy, macs = np.stack([np.linspace(0.5, 0.59, 10), middle]), np.linspace(0, 1, 10)
    rng, space = np.random.default_rng(0), TINY.space
    children = [{*static._child(space, tried, accuracy, macs, rng).ravel().tolist()} for _ in range(200)]
    assert set().union(*children) == {*range(8)}
    assert all(child <= {0, 1, 2, 3} or child <= {4, 5, 6, 7} for child in children)


def test_parents_are_judged_by_all_by_the_easier_and_by_the_harder_images(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked, usual = make_engine(random_net(TINY), 24), list[Any](), static._child

    def child(space: Any, tried: Any, accuracy: Any, *rest: Any) -> Any:
        asked.append(accuracy.copy())
        return usual(space, tried, accuracy, *rest)

    monkeypatch.setattr(static, "_child", child)
    found = evolve_static_front(engine, np.arange(24), num_subnets=8, seed=0)
    easy = engine.dataset.difficulty.numpy() <= 1
    by_part = [found.correct[:, rows].mean(axis=1) for rows in (easy | True, easy, ~easy)]
    np.testing.assert_array_equal(asked[-1], np.stack(by_part)[:, : asked[-1].shape[1]])


def test_a_subnet_is_promising_that_is_nearly_the_best_at_some_price() -> None:
    correct, everything = np.arange(100) < np.array([100, 90])[:, None], np.arange(100)
    assert static._promising(np.array([1.0, 0.1]), correct, [everything])
    assert not static._promising(np.array([0.1, 1.0]), correct, [everything])
    assert static._promising(np.array([0.1, 1.0]), correct, [everything, np.arange(50)])


def test_the_best_of_a_band_is_its_most_accurate() -> None:
    correct = np.arange(10) < np.array([3, 5, 4, 9, 7])[:, None]
    found = SearchResult(np.zeros((5, 1, 1)), np.array([0.1, 0.2, 0.3, 0.6, 1.0]), correct)
    assert found.best_in_bands(2) == {0.0: 1, 0.5: 3, 1.0: 4}
