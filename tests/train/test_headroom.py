"""What there is to win by looking, measured before an agent is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import make_engine
from small_nets import small_net

from prance_env import InferenceEngine
from prance_env.settings import EnvSettings
from supernet import SubnetConfig
from supernet.arrays import Ints
from train.search.static import SearchResult, correct_of_static
from train.yardsticks import headroom
from train.yardsticks.headroom import HeadroomSettings, choose_per_stratum, measure_headroom, run_headroom
from train.yardsticks.visible import STRATA, area_under_curve, chances, observed_at_full_size, strata_of


def test_what_can_be_seen_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    seen, others = rng.normal(size=(900, 6)), rng.normal(size=(900, 6))
    needs, of_others = seen[:, 2] > 0.3, others[:, 2] > 0.3
    found = chances(seen, needs, others)
    assert found is not None
    assert area_under_curve(found[1], of_others) == pytest.approx(1, abs=0.01)
    shuffled = rng.permutation(needs)
    guessed = chances(seen, shuffled, others)
    assert guessed is not None
    assert area_under_curve(guessed[0], shuffled) == pytest.approx(0.5, abs=0.08), "each by a regression on others"
    assert chances(seen, np.arange(900) < 3, others) is None
    assert area_under_curve(found[1], np.zeros(900, dtype=bool)) is None
    own, theirs = strata_of(*found)
    assert np.bincount(own).tolist() == [300] * STRATA
    assert of_others[theirs == 0].mean() < 0.05 < 0.95 < of_others[theirs == 2].mean()


def test_what_can_be_seen_does_not_depend_on_the_order_of_the_images() -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(10), 60)  # class by class, as folders list theirs
    seen = np.eye(10)[kind] + 0.1 * rng.normal(size=(600, 10))
    needs = rng.random(600) < np.tile([0.1, 0.9], 5)[kind]
    mixed = rng.permutation(600)
    areas = []
    for order in (np.arange(600), mixed):
        found = chances(seen[order], needs[order], seen)
        assert found is not None
        areas.append(area_under_curve(found[0], needs[order]))
    assert areas[0] == pytest.approx(areas[1], abs=0.02)


def test_a_stratum_that_needs_little_gets_little() -> None:
    correct = np.array([[True] * 4 + [False] * 4, [True] * 8])
    found = SearchResult(np.zeros((2, 1, 1)), np.array([0.2, 1.0]), correct)
    assert choose_per_stratum(found, np.repeat([0, 1], 4), 1.0) == [0, 1]


def test_a_stratum_counts_by_its_images() -> None:
    correct = np.array([[True] * 8 + [False] * 2, [True] * 10])
    found, stratum = SearchResult(np.zeros((2, 1, 1)), np.array([0.1, 1.0]), correct), np.repeat([0, 1], [8, 2])
    assert choose_per_stratum(found, stratum, 0.75) == [0, 0]
    assert choose_per_stratum(found, stratum, 0.85) == [0, 1]


def test_observations_are_those_of_the_environment() -> None:
    env: Any = gym.make("Prance-Digits-v0", split="val", normalize_actions=False)
    first, info = env.reset(seed=0)
    second = env.step(np.ones(env.action_space.shape, env.action_space.dtype))[0]
    engine = EnvSettings.from_id("Prance-Digits-v0", split="val").engine()
    seen = observed_at_full_size(engine, np.array([info["index"]]))
    assert len(seen) == engine.config.space.num_decisions
    np.testing.assert_array_equal(np.stack(seen[:2])[:, 0], np.stack([first, second]))


def test_both_halves_have_all_classes_and_one_stratum_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, searched = make_engine(small_net("prune", groups=(1, 1)), 24), list[Ints]()
    usual = headroom.evolve_static_front

    def search(engine: InferenceEngine, index: Ints, *args: Any, **named: Any) -> SearchResult:
        searched.append(index)
        return usual(engine, index, *args, **named)

    monkeypatch.setattr(headroom, "evolve_static_front", search)
    result = measure_headroom(engine, 3, images=20)
    assert searched[0].tolist() == [0, 2, 4, 7, 9, 12, 14, 16, 19, 21]
    assert result["images"] == 10
    assert not any("per_stratum_macs" in row for row in result["rows"]), "nobody knows how difficult these images are"


def test_a_hopeless_smallest_subnet_is_judged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(small_net("prune", groups=(1, 1)), 40)
    full = np.ones((1, engine.config.space.num_decisions, engine.config.space.action_size))

    def search(engine: InferenceEngine, index: Ints, *args: Any, **named: Any) -> SearchResult:
        return SearchResult(full, np.ones(1), np.ones((1, len(index)), dtype=bool))

    monkeypatch.setattr(headroom, "evolve_static_front", search)
    result = measure_headroom(engine, 2)
    smallest = SubnetConfig.from_actions(engine.config.space, torch.zeros(full.shape, dtype=torch.float64))
    assert result["min_macs"] == engine.net.macs(smallest)[0] / engine.full_macs
    assert result["min_accuracy"] == correct_of_static(engine, np.arange(1, 40, 2), full[0] * 0).mean()


def test_ways_are_chosen_on_one_half_and_judged_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, pair = make_engine(small_net("prune", groups=(1, 1)), 40), np.arange(40) // 2
    even, odd = np.arange(40) % 2 == 0, np.arange(40) % 2 == 1
    digits = np.where(even, np.repeat([3, 4, 8], [10, 6, 4])[pair], np.repeat([3, 4, 8], [4, 8, 8])[pair])
    engine = InferenceEngine(noise.net, replace(noise.dataset, difficulty=torch.from_numpy(digits)))  # type: ignore[type-var]
    # The full network, one as good on the even images, and one that is right about few digits and most others.
    full, middle, small = even | (pair > 0), even | (pair > 2), (digits < 4) | (even & (pair < 18) & (pair != 12))
    table, macs, needs = np.stack([full, middle, small]), np.array([1.0, 0.5, 0.2]), full & ~small
    actions = np.linspace(1, 0, 3)[:, None, None] * np.ones((1, engine.config.space.action_size))
    for name, told in {
        "evolve_static_front": lambda engine, index, *a, **k: SearchResult(actions, macs, table[:, index]),
        "correct_of_static": lambda engine, index, chosen: table[round(2 - 2 * chosen.flat[0]), index],
        "observed_at_full_size": lambda engine, index: [needs[index, None].astype(float)],
        "chances": lambda own, needs, others: (0 * own[:, 0], others[:, 0]),
    }.items():
        monkeypatch.setattr(headroom, name, told)
    result = measure_headroom(engine, 3)
    assert (result["full_accuracy"], result["min_accuracy"]) == (full[odd].mean(), small[odd].mean())
    assert result["visible"] == [1.0]
    for row in result["rows"]:
        assert row["static_macs"] == 0.5, "the cheapest that is as right as the full network on the even images"
        assert row["static_accuracy"] == middle[odd].mean()
        assert row["per_stratum_choice"] == [0.2, 0.5, 0.5]
        assert row["per_stratum_macs"] == pytest.approx((4 * 0.2 + 16 * 0.5) / 20)
        assert row["per_stratum_accuracy"] == np.where(digits < 4, small, middle)[odd].mean()
        assert row["per_stratum_saving"] == pytest.approx(1 - row["per_stratum_macs"] / 0.5)


def test_one_image_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_engine(small_net("prune", groups=(1, 1)), 1)
    monkeypatch.setattr(headroom.EnvSettings, "engine", lambda self: one)
    with pytest.raises(ValueError, match="val has 1 image"):
        run_headroom(HeadroomSettings(num_subnets=2), None)
    with pytest.raises(ValueError, match="images=1 must be at least 2"):
        HeadroomSettings(images=1)
