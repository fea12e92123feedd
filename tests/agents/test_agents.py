"""Agents that need no training, the search for static subnets, and the evaluation that judges them all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import comparable, make_engine, random_net, settings_for

from agents import (
    BaselineAgent,
    ConfidenceAgent,
    ConfidenceRule,
    FullAgent,
    PrancePPO,
    RandomAgent,
    StaticAgent,
    make_sb3,
)
from agents.fitting import Interface
from agents.sb3.make import INITIAL_ACTION
from prance_env import InferenceEngine, make_sb3_env
from prance_env.spaces import decode_actions, observation_layout
from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig
from train.evaluate import evaluate
from train.search import static
from train.search.shared_runs import SharedRuns
from train.search.static import SearchResult, correct_of_static, evolve_static_front, macs_of_static, pareto_front

IMAGES = 64


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Noise before a random supernet."""
    return make_engine(digits_net, IMAGES)


def a_subnet(engine: InferenceEngine, seed: int = 3) -> SubnetConfig:
    """A random subnet."""
    return SubnetConfig.random(engine.config.space, 1, torch.Generator().manual_seed(seed))


def agents_for(engine: InferenceEngine) -> list[BaselineAgent]:
    """One of each kind, with unusual settings."""
    config = engine.config
    return [
        FullAgent(config, "cls_only", False),
        RandomAgent(config, "constant", seed=5),
        StaticAgent(a_subnet(engine), config, normalize_actions=False),
        ConfidenceAgent([ConfidenceRule("entropy", (0.1, 0.7), ((0.1,) * 7, (0.5,) * 7, (1.0,) * 7))] * 3, config),
    ]


def test_agents_asked_about_nothing_say_nothing(engine: InferenceEngine) -> None:
    space = engine.config.space
    ppo = PrancePPO(None, spaces=(Interface(engine.config).observation_space, Interface(engine.config).action_space))
    for agent in (*agents_for(engine), ppo):
        size = agent.observation_size or 76
        assert agent.predict(np.zeros((0, size), np.float32), deterministic=True)[0].shape == (0, space.action_size)
        assert agent.predict(np.zeros(size, np.float32), deterministic=True)[0].shape == (space.action_size,)


@torch.inference_mode()
def test_the_full_agent_is_the_full_network(engine: InferenceEngine) -> None:
    result = evaluate(FullAgent(engine.config), settings_for(engine))
    np.testing.assert_array_equal(result.prediction, engine.net(engine.dataset.images).argmax(1))
    assert (result.macs_fraction == 1).all()
    assert (result.patches == 1).all()
    assert (result.actions == 1).all()
    assert result.summary()["accuracy"] == 0.5  # as the labels were made


@torch.inference_mode()
@pytest.mark.parametrize("observation", ["cls", "cls_only", "constant"])
@pytest.mark.parametrize("normalize_actions", [True, False])
def test_a_static_agent_is_its_subnet(engine: InferenceEngine, observation: str, normalize_actions: bool) -> None:
    net, subnet = engine.net, a_subnet(engine)
    agent = StaticAgent(subnet, engine.config, observation, normalize_actions)
    result = evaluate(agent, settings_for(engine, observation, normalize_actions), batch_size=24)
    np.testing.assert_array_equal(result.prediction, net(engine.dataset.images, subnet).argmax(1))
    np.testing.assert_array_equal(result.macs_fraction, net.macs(subnet).item() / net.macs().item())
    np.testing.assert_allclose(result.actions, subnet.to_actions(net.space).expand(IMAGES, -1, -1), atol=1e-6)
    np.testing.assert_allclose(result.mean_action(), subnet.to_actions(net.space), atol=1e-6)
    np.testing.assert_array_equal(result.index, np.arange(IMAGES))


def test_results_are_broken_down_by_stratum(engine: InferenceEngine) -> None:
    result = evaluate(RandomAgent(engine.config, seed=1), settings_for(engine))
    np.testing.assert_allclose(result.mean_action(), result.actions.mean(0)[None])
    parts = result.by_difficulty()
    assert sorted(parts) == ["0", "1", "2"]
    for key, total in result.summary().items():
        values = [part[key] for part in parts.values()]
        weights = [part["n_images"] for part in parts.values()]
        expected = sum(values) if key == "n_images" else np.average(values, weights=weights)
        assert total == pytest.approx(expected)
    assert (np.diff(result.patches, axis=1) <= 0).all()
    assert (result.correct == (result.prediction == engine.dataset.labels.numpy())).all()


def test_a_random_agent_repeats_itself_with_its_seed_only(engine: InferenceEngine) -> None:
    first, again, other = (
        evaluate(RandomAgent(engine.config, seed=seed), settings_for(engine)).actions for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 0.2


def test_predict_takes_one_observation_or_a_batch_and_hands_the_state_back(engine: InferenceEngine) -> None:
    config = engine.config
    subnet = a_subnet(engine)
    agent = StaticAgent(subnet, config)
    place = observation_layout(config, "cls")["decision"]
    rows = np.zeros((config.space.num_decisions, place.stop + 2), dtype=np.float32)
    rows[:, place] = np.eye(config.space.num_decisions)
    actions, state = agent.predict(rows, state="kept", episode_start=None, deterministic=True)
    assert state == "kept"
    assert actions.dtype == np.float32
    np.testing.assert_allclose((actions + 1) / 2, subnet.to_actions(config.space)[0], atol=1e-6)
    for row, action in zip(rows, actions, strict=True):
        np.testing.assert_array_equal(agent.predict(row)[0], action)
        assert agent.action_space.contains(action)


@pytest.mark.parametrize("which", range(4))
def test_a_saved_agent_comes_back_the_same(engine: InferenceEngine, tmp_path: Path, which: int) -> None:
    path = tmp_path / "agent.json"
    agents_for(engine)[which].save(path)
    agent, loaded = agents_for(engine)[which], BaselineAgent.load(path)
    assert type(loaded) is type(agent)
    assert loaded.config == agent.config
    rows = np.zeros((5, 200), dtype=np.float32)
    assert comparable(loaded.predict(rows)) == comparable(agent.predict(rows))
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


@pytest.mark.parametrize("which", range(4))
def test_a_damaged_file_is_refused_by_name(engine: InferenceEngine, tmp_path: Path, which: int) -> None:
    path = tmp_path / "agent.json"
    agents_for(engine)[which].save(path)
    text = path.read_text()
    data = json.loads(text)
    damaged = [text[: len(text) // 2], "", "[]", "3", '"FullAgent"']
    for key in data:
        damaged.append(json.dumps({k: v for k, v in data.items() if k != key}))
        if key != "normalize_actions":
            damaged += [json.dumps({**data, key: value}) for value in ("Nobody", {"a": 1}, -1.5)]
    for broken in damaged:
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"agent\.json"):
            BaselineAgent.load(path)
    path.write_bytes(b"\xff\xfe\x00PK")
    with pytest.raises(ValueError, match=r"agent\.json"):
        BaselineAgent.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BaselineAgent.load(tmp_path / "nowhere.json")


def test_what_classes_are_called_makes_no_other_supernet_of_one(engine: InferenceEngine) -> None:
    config = engine.config
    named = replace(config, class_names=tuple(f"class {k}" for k in range(config.num_classes)))
    for own, other in ((config, named), (named, config)):
        agent = FullAgent(own)
        assert agent.for_environment(other, "cls", True) is agent
        with pytest.raises(ValueError, match=r"another supernet .*: std=\(.*\) instead of \(0.125"):
            agent.for_environment(replace(other, std=(0.125,) * other.in_chans), "cls", True)


def test_a_static_agent_takes_exactly_one_subnet_of_the_space(engine: InferenceEngine) -> None:
    space = engine.config.space
    with pytest.raises(ValueError, match=r"one subnet, not 2.*subnet\[0\]"):
        StaticAgent(SubnetConfig.random(space, 2), engine.config)
    foreign = SubnetConfig.full(space)
    foreign.embed_dim[0, -1] = 7
    with pytest.raises(ValueError, match="embed_dim=7"):
        StaticAgent(foreign, engine.config)
    with pytest.raises(ValueError, match=r"'pixels'.*cls"):
        FullAgent(engine.config, "pixels")
    with pytest.raises(ValueError, match=r"'key_mean'.*'constant'"):
        StaticAgent(a_subnet(engine), engine.config, "key_mean")


def test_the_pareto_front_holds_what_no_cheaper_or_equal_point_reaches() -> None:
    #               0     1     2     3     4     5     6
    cost = np.array([0.5, 0.2, 0.9, 0.2, 0.5, 0.7, 1.0])
    gain = np.array([0.6, 0.3, 0.8, 0.4, 0.6, 0.5, 0.8])
    front = pareto_front(cost, gain)
    assert front[0] == 3
    assert front[1] in (0, 4)
    assert front[2:].tolist() == [2]
    assert pareto_front(cost[:1], gain[:1]).tolist() == [0]


@torch.inference_mode()
def test_static_subnets_are_judged_like_the_network_itself(engine: InferenceEngine) -> None:
    subnets = SubnetConfig.random(engine.config.space, 3, torch.Generator().manual_seed(0))
    actions = subnets.to_actions(engine.config.space).numpy()
    index = np.array([5, 0, 63, 17, 17])
    for number in range(len(subnets)):
        predictions = engine.net(engine.dataset.images[index], subnets[number]).argmax(1)
        expected = (predictions == engine.dataset.labels[index]).numpy()
        np.testing.assert_array_equal(correct_of_static(engine, index, actions[number], batch_size=2), expected)
    expected_macs = engine.net.macs(subnets).numpy() / engine.net.macs().item()
    np.testing.assert_array_equal(macs_of_static(engine, actions), expected_macs)


@pytest.mark.slow
def test_the_search_tries_as_many_distinct_subnets_as_asked_and_is_reproducible(any_net: Supernet) -> None:
    engine, index = make_engine(any_net, 16), np.arange(16)
    tried: list[int] = []

    def search(seed: int, **kwargs: Any) -> SearchResult:
        return evolve_static_front(engine, index, num_subnets=24, seed=seed, **kwargs)

    result, again, other = search(1, progress=tried.append), search(1), search(2)
    assert tried == list(range(1, 25))
    assert len(np.unique(result.actions.reshape(24, -1).round(6), axis=0)) == 24
    assert ((result.actions >= 0) & (result.actions <= 1)).all()
    for name, value in vars(result).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert not np.array_equal(result.actions, other.actions)
    for number in (0, 5, 23):
        expected = correct_of_static(engine, index, result.actions[number])
        np.testing.assert_array_equal(result.correct[number], expected)
    np.testing.assert_array_equal(result.macs_fraction, macs_of_static(engine, result.actions))


def test_clearly_worse_subnets_are_given_up_early_and_the_others_judged_by_all_images(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    verdict = SharedRuns.verdict

    def counted(self: SharedRuns, index: Any, actions: Any) -> Any:
        judged.append(len(index))
        return verdict(self, index, actions)

    monkeypatch.setattr(static, "SCREENED_FROM", 32)
    monkeypatch.setattr(SharedRuns, "verdict", counted)
    index = np.random.default_rng(0).permutation(IMAGES)
    result = evolve_static_front(engine, index, num_subnets=15, seed=0)
    assert judged.count(IMAGES // 8) > judged.count(IMAGES - IMAGES // 8) == 15
    monkeypatch.undo()
    for actions, correct in zip(result.actions, result.correct, strict=True):
        np.testing.assert_array_equal(correct, correct_of_static(engine, index, actions))


def test_the_search_begins_with_the_subnets_that_it_is_given(engine: InferenceEngine) -> None:
    space = engine.config.space
    starts = SubnetConfig.random(space, 3, torch.Generator().manual_seed(7)).to_actions(space).numpy()
    found = evolve_static_front(engine, np.arange(IMAGES), num_subnets=6, starts=starts)
    np.testing.assert_array_equal(found.actions[:3], starts)
    np.testing.assert_array_equal(found.actions[3], np.ones_like(starts[0]))


def test_the_search_ends_when_a_small_search_space_has_no_more_subnets() -> None:
    engine = make_engine(random_net(SupernetConfig(SearchSpace((1, 1), (16,), (1,), (1,)), 24, 8, num_classes=3)), 8)
    tried: list[int] = []
    found = evolve_static_front(engine, np.arange(8), num_subnets=300, progress=tried.append)
    assert 17 < len(tried) < 300, "keep rates are in sixteenths"
    assert len(found.actions) == len(found.macs_fraction) == len(found.correct) == len(tried)
    np.testing.assert_array_equal(found.macs_fraction, macs_of_static(engine, found.actions))


def test_the_best_subnet_at_a_price_is_found_for_all_images_and_for_some() -> None:
    correct = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    found = SearchResult(np.zeros((3, 1, 1)), np.array([1.0, 0.4, 0.1]), correct)
    prices = np.array([0.1, 1.0, 5.0])
    assert found.best_at(prices).tolist() == [0, 2, 2]
    assert found.best_at(prices, np.array([True, True, False, False])).tolist() == [1, 1, 2]


def test_the_front_of_a_search_rises_and_nothing_tried_beats_it(engine: InferenceEngine) -> None:
    result = evolve_static_front(engine, np.arange(IMAGES), num_subnets=12)
    for rows in (None, engine.dataset.difficulty.numpy() == 0):
        accuracy = (result.correct if rows is None else result.correct[:, rows]).mean(1)
        front = result.front(rows)
        assert (np.diff(result.macs_fraction[front]) > 0).all()
        assert (np.diff(accuracy[front]) > 0).all()
        for macs, value in zip(result.macs_fraction, accuracy, strict=True):
            assert value <= accuracy[front[result.macs_fraction[front] <= macs]].max()


@pytest.mark.parametrize("normalize_actions", [True, False])
def test_an_untrained_ppo_starts_near_the_full_network_with_whole_episodes_per_rollout(normalize_actions: bool) -> None:
    venv = make_sb3_env(n_envs=8, seed=0, normalize_actions=normalize_actions)
    model: Any = make_sb3("ppo", venv, seed=0, batch_size=16)
    actions, _ = model.predict(venv.reset(), deterministic=True)
    np.testing.assert_allclose(decode_actions(actions, normalize_actions), INITIAL_ACTION, atol=0.05)
    assert model.n_steps % venv.get_attr("config")[0].space.num_decisions == 0
    assert model.batch_size == 16
    with pytest.raises(ValueError, match=r"'dreamer'.*'ppo'"):
        make_sb3("dreamer", venv)
