"""Reward functions of users and the paper's preset, against values worked out from the info."""

from __future__ import annotations

import copy
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import ENV_ID, make_engine, played, unit_actions

from prance_env import Outcome, PranceVectorEnv, RewardConfig, register_reward
from prance_env.rewards.outcome import REWARDS
from supernet import Supernet, freeze, supernet_config
from supernet.macs import remaining_macs, stem_macs

N = 6
MODULE = "rewards_of_a_user"
Install = Callable[[Callable[[Outcome], Any]], str]


@pytest.fixture
def install() -> Iterator[Install]:
    """Makes a function importable and returns its path."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module

    def put(function: Callable[[Outcome], Any]) -> str:
        module.function = function  # type: ignore[attr-defined]
        return f"{MODULE}:function"

    yield put
    del sys.modules[MODULE]


def make_envs(reward: dict[str, Any], **kwargs: Any) -> PranceVectorEnv:
    envs = gym.make_vec(ENV_ID, N, autoreset_mode="DISABLED", reward=reward, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def episode(envs: PranceVectorEnv) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Rewards and infos of one episode of fixed random actions."""
    envs.reset(seed=1)
    rng = np.random.default_rng(0)
    rows = [
        envs.step(rng.uniform(-1, 1, envs.action_space.shape).astype(np.float32))
        for _ in range(envs.config.space.num_decisions)
    ]
    return [r[1] for r in rows], [r[4] for r in rows]


def test_a_registered_function_is_called_by_its_name() -> None:
    @register_reward("of_a_user")
    def frugal(outcome: Outcome) -> Any:
        return 2 - outcome.macs / outcome.full_macs

    try:
        rewards, infos = episode(make_envs({"function": "of_a_user"}))
        for reward, info in zip(rewards, infos, strict=True):
            np.testing.assert_allclose(reward, 2 - info["macs_fraction"], rtol=1e-12)
        with pytest.raises(ValueError, match=r"Reward name 'of_a_user' is taken; registered are \[.*'of_a_user'\]"):
            register_reward("of_a_user", lambda outcome: outcome.accuracy)
        with pytest.raises(ValueError, match="'a:b' must have no colon"):
            register_reward("a:b", frugal)
    finally:
        REWARDS.remove("of_a_user")
    with pytest.raises(ValueError, match=r"'of_a_user' must have the form 'package.module:name', or be a name"):
        RewardConfig(function="of_a_user")


@pytest.mark.parametrize("mode", ["result_to_go", "potential", "terminal"])
def test_a_function_replaces_the_value_and_the_mode_still_applies(install: Install, mode: str) -> None:
    path = install(lambda o: 3 * (o.prediction == o.label) - o.macs / o.full_macs + 0.1 * o.keep_rate.mean(1))
    rewards, infos = episode(make_envs({"function": path, "mode": mode}))
    values = list(np.cumsum(rewards, axis=0)) if mode == "potential" else rewards
    for value, info in zip(values, infos, strict=True):
        if mode == "terminal" and info["decision"][0] < len(infos):
            assert not value.any()
            continue
        rest = value - 3 * info["is_success"] + info["macs_fraction"]
        assert ((rest > 0) & (rest <= 0.1 + 1e-9)).all()


def test_the_function_is_told_what_the_info_says(install: Install) -> None:
    seen: list[Outcome] = []

    def note(outcome: Outcome) -> np.ndarray:
        seen.append(copy.deepcopy(outcome))
        return outcome.accuracy

    envs = make_envs({"function": install(note), "macs_weight": 0.3, "accuracy": "top1"})
    rewards, infos = episode(envs)
    space = envs.config.space
    for number, (outcome, reward, info) in enumerate(zip(seen, rewards, infos, strict=True), start=1):
        for name in ("index", "label", "prediction", "macs", "embed_dim", "mlp_ratio", "num_tokens"):
            np.testing.assert_array_equal(getattr(outcome, name), info[name], err_msg=name)
        np.testing.assert_array_equal(outcome.decision, np.full(N, number))
        np.testing.assert_array_equal(outcome.accuracy, info["is_success"])
        np.testing.assert_array_equal(reward, info["reward_accuracy"])
        np.testing.assert_allclose(info["reward_macs"], -0.3 * outcome.macs / outcome.full_macs)
        np.testing.assert_array_equal(outcome.macs_weight, np.full(N, 0.3))
        assert outcome.keep_rate.shape == (N, space.num_decisions)
        assert (outcome.keep_rate[:, number:] == 1).all()
        assert (outcome.keep_rate[:, :number] < 1).all()
        assert np.isnan(outcome.latency_ms).all()
        full = envs.lanes.engine.start(info["index"])
        np.testing.assert_array_equal(outcome.full_prediction, full.prediction)
        np.testing.assert_array_equal(outcome.full_prob, full.prob)
        assert {getattr(outcome, f.name).shape[0] for f in fields(outcome)} == {N}


def test_a_function_cannot_write_into_the_episodes(install: Install) -> None:
    def vandal(outcome: Outcome) -> np.ndarray:
        outcome.embed_dim[:] = 1
        return outcome.accuracy

    envs = make_envs({"function": install(vandal)})
    with pytest.raises(ValueError, match="read-only"):
        episode(envs)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda o: o.accuracy[:, None], [rf"\({N}, 1\)", rf"expected \({N},\)"]),
        (lambda o: 0.5, [r"\(\)", rf"expected \({N},\)"]),
        (lambda o: None, [f"{MODULE}:function"]),
        (lambda o: ["a"] * N, ["str|list", f"expected \\({N},\\)"]),
        (lambda o: np.where(np.arange(N) == 2, np.nan, 0), ["nan", "image", "decision 1", "finite"]),
        (lambda o: np.full(N, np.inf), ["inf", "finite"]),
    ],
    ids=["column", "scalar", "None", "text", "nan", "inf"],
)
def test_a_wrong_result_is_refused_and_the_episode_goes_on_unchanged(
    install: Install, function: Callable[[Outcome], Any], words: list[str]
) -> None:
    envs, untouched = make_envs({"function": install(lambda o: o.accuracy)}), make_envs({"accuracy": "agreement"})
    actions = np.zeros(envs.action_space.shape or (), dtype=np.float32)
    envs.reset(seed=1)
    untouched.reset(seed=1)
    install(function)
    with pytest.raises(ValueError) as caught:
        envs.step(actions)
    assert [w for w in words if not re.search(w, str(caught.value))] == []
    install(lambda o: o.accuracy)
    np.testing.assert_array_equal(envs.step(actions)[0], untouched.step(actions)[0])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nonsense", ["'nonsense'", "package.module:name"]),
        ("math:", ["'math:'", "package.module:name"]),
        (3, ["function=3", "string"]),
        ("no_such_module:f", ["no_such_module:f", "No module named"]),
        ("math:no_such_function", ["math:no_such_function", "no attribute"]),
        ("math:pi", ["math:pi", "float", "not a function"]),
    ],
)
def test_a_bad_path_is_refused_when_the_environment_is_made(path: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make_envs({"function": path})
    assert [w for w in words if w not in str(caught.value)] == []


@pytest.mark.parametrize(("name", "gigamacs"), [("tiny", 2.32), ("small", 6.44), ("base", 20.70)])
def test_the_papers_preset_pays_for_macs_and_tokens_as_the_paper_does(name: str, gigamacs: float) -> None:
    config = supernet_config(f"prance_vit_{name}")
    macs = stem_macs(config) + int(remaining_macs(config, 0, np.array([config.num_patches + 1]))[0])
    reward = RewardConfig.paper(name)
    assert macs == pytest.approx(gigamacs * 1e9, rel=0.01)  # the authors' own count of their largest network
    assert reward == RewardConfig("result_to_go", "agreement", 0.008 * macs / 1e8, 0.1)
    assert RewardConfig.paper(config) == RewardConfig.from_dict({"preset": "paper"}, config) == reward


def test_an_environment_with_the_papers_preset_gives_the_papers_reward() -> None:
    rewards, infos = episode(make_envs({"preset": "paper"}))
    patches: Any = supernet_config("digits").num_patches
    for reward, info in zip(rewards, infos, strict=True):
        np.testing.assert_allclose(info["reward_macs"], -0.008 * info["macs"] / 1e8, rtol=1e-12)
        assert ((info["reward_tokens"] < 0) & (info["reward_tokens"] >= -0.1)).all()
        np.testing.assert_allclose(
            reward, info["reward_accuracy"] + info["reward_macs"] + info["reward_tokens"], atol=1e-12
        )
        keep_rate, left = -info["reward_tokens"] / 0.1, info["num_tokens"] - 1
        np.testing.assert_array_equal(np.maximum(np.ceil(keep_rate * patches - 1e-6), 1), left)
        patches = left


def test_the_preset_can_be_changed_and_unknown_ones_are_refused() -> None:
    settings = make_envs({"preset": "paper", "mode": "potential", "token_weight": 0.0}).settings
    weight = RewardConfig.paper("digits").macs_weight
    assert settings.reward_config == RewardConfig("potential", "agreement", weight, 0.0)
    with pytest.raises(ValueError, match=r"'papre'.*paper"):
        make_envs({"preset": "papre"})
    with pytest.raises(ValueError, match="huge"):
        RewardConfig.paper("huge")


@pytest.mark.parametrize("mode", ["result_to_go", "potential"])
def test_both_rates_of_a_decision_are_paid_for(mode: str) -> None:
    config = supernet_config("digits")
    net = freeze(Supernet(replace(config, space=replace(config.space, token_mode="prune_merge"))))
    path = played(make_engine(net, N), unit_actions(net.space, N), RewardConfig(mode, token_weight=0.1))
    for decision, episodes in enumerate(path[1:]):
        rates = episodes.keep_rate.sum(-1)
        kept = rates[:, decision] if mode == "result_to_go" else rates.mean(1)
        np.testing.assert_allclose(episodes.reward_tokens, -0.1 * kept)
    assert path[1].reward_tokens[0] == pytest.approx(-0.2)
