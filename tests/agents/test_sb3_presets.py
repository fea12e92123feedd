"""Presets of Stable-Baselines3's algorithms: they fit the classes, learn, begin accurate, and refuse what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from helpers import ENV_ID
from sb3_envs import envs, installed
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise

from agents import make_sb3
from agents.sb3.hyperparams import ALGORITHMS, PRESETS, algorithm_class, check_hyperparams, read_preset
from agents.sb3.make import INITIAL_ACTION
from prance_env import make_sb3_env
from prance_env.spaces import decode_actions
from prance_env.wrappers import (
    DictObservation,
    VectorDictObservation,
    VectorDiscreteActions,
    VectorMultiDiscreteActions,
)

OFF_POLICY = ("sac", "td3", "tqc")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("normalize_actions", [True, False])
def test_an_untrained_policy_starts_near_the_full_network(algorithm: str, normalize_actions: bool) -> None:
    venv = envs(normalize_actions=normalize_actions)
    model: Any = make_sb3(installed(algorithm), venv, seed=0)
    actions, _ = model.predict(venv.reset(), deterministic=True)
    np.testing.assert_allclose(decode_actions(actions, normalize_actions), INITIAL_ACTION, atol=0.05)
    if algorithm == "td3":
        for a, b in zip(model.actor.parameters(), model.actor_target.parameters(), strict=True):
            assert torch.equal(a, b)
    if algorithm in ("sac", "tqc"):
        observation = torch.as_tensor(venv.reset())
        log_std = model.actor.get_action_dist_params(observation)[1]
        expected = read_preset(algorithm).hyperparams["policy_kwargs"]["log_std_init"]
        np.testing.assert_allclose(log_std.detach(), expected, atol=0.05)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "sac"])
@pytest.mark.parametrize("normalize_actions", [True, False])
@pytest.mark.parametrize("squash", [True, False])
def test_so_does_one_with_state_dependent_exploration(algorithm: str, normalize_actions: bool, squash: bool) -> None:
    venv = envs(normalize_actions=normalize_actions)
    policy = {} if algorithm == "sac" else {"squash_output": squash}
    model = make_sb3(algorithm, venv, seed=0, use_sde=True, policy_kwargs={"net_arch": [16], **policy})
    actions, _ = model.predict(venv.reset(), deterministic=True)  # type: ignore[arg-type]
    np.testing.assert_allclose(decode_actions(actions, normalize_actions), INITIAL_ACTION, atol=0.015)


@pytest.mark.parametrize("make", [lambda: gym.make(ENV_ID), lambda: gym.make_vec(ENV_ID, 2), lambda: None])
def test_what_is_no_environment_of_sb3_is_refused_with_one_that_is(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"env is a \w+; pass a VecEnv .*make_sb3_env\('Prance-Digits-v0'"):
        make_sb3("ppo", make())


@pytest.mark.parametrize("wrapper", [VectorDiscreteActions, VectorMultiDiscreteActions])
def test_presets_are_for_the_environments_own_actions(wrapper: Any) -> None:
    with pytest.raises(ValueError, match=r"actions of env are (Multi)?Discrete\(.*\), but .*a Box.*sb3_dqn\.py"):
        make_sb3("ppo", make_sb3_env(ENV_ID, 2, wrappers=[wrapper]))


def test_environments_of_others_are_refused_and_not_stumbled_over() -> None:
    with pytest.raises(ValueError, match=r"env holds .*Pendulum-v1.* no environment of prance_env.*PPO\('MlpPolicy'"):
        make_sb3("ppo", make_vec_env("Pendulum-v1", 2))


def test_environments_of_sb3s_own_making_and_dict_observations_are_taken() -> None:
    for env in (
        make_vec_env(ENV_ID, 2),
        make_vec_env(ENV_ID, 2, wrapper_class=DictObservation),
        make_sb3_env(ENV_ID, 2, wrappers=[VectorDictObservation]),
    ):
        model = make_sb3("ppo", env, seed=0)
        actions, _ = model.predict(env.reset(), deterministic=True)  # type: ignore[arg-type]
        np.testing.assert_allclose(decode_actions(actions, True), INITIAL_ACTION, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_learns_and_a_saved_agent_predicts_the_same(algorithm: str, tmp_path: Path) -> None:
    venv = envs(16)
    small = {"learning_starts": 48, "buffer_size": 480} if algorithm in OFF_POLICY else {}
    model = make_sb3(installed(algorithm), venv, seed=0, **small)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(400)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "model.zip")
    loaded = algorithm_class(algorithm).load(tmp_path / "model.zip")
    observations = venv.reset()
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_presets_are_rl_zoos_entries_without_code(algorithm: str) -> None:
    entry = yaml.safe_load((PRESETS / f"{algorithm}.yml").read_text())["default"]
    preset = read_preset(installed(algorithm))
    assert {"n_envs", "n_timesteps", "policy", "env_kwargs"} <= set(entry)
    assert preset.hyperparams == {k: entry[k] for k in entry if k in preset.hyperparams}
    assert len(entry) == len(preset.hyperparams) + 4
    assert isinstance(entry["policy_kwargs"], dict)
    text = (PRESETS / f"{algorithm}.yml").read_text()
    assert "dict(" not in text
    assert "!!" not in text


def test_presets_become_arguments_of_the_classes() -> None:
    ppo = make_sb3("ppo", envs(256), learning_rate="lin_0.004", clip_range="lin_0.3")
    assert isinstance(ppo, PPO)
    rates = [ppo.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0)]
    np.testing.assert_allclose(rates, [0.004, 0.002, 0])
    assert ppo.clip_range(0.5) == pytest.approx(0.15)  # type: ignore[operator]
    assert ppo.batch_size == read_preset("ppo").hyperparams["batch_size"]

    td3 = make_sb3("td3", envs(4), noise_std=0.37, train_freq=[2, "step"])
    assert isinstance(td3.action_noise, NormalActionNoise | VectorizedActionNoise)  # type: ignore[attr-defined]
    assert "0.37" in repr(td3.action_noise)  # type: ignore[attr-defined]
    assert td3.train_freq.frequency == 2  # type: ignore[attr-defined]
    mine = NormalActionNoise(np.zeros(7), np.ones(7))
    assert make_sb3("td3", envs(4), action_noise=mine).action_noise is mine  # type: ignore[attr-defined]


def test_other_numbers_of_environments_and_decisions_keep_the_proportions(tmp_path: Path) -> None:
    n_envs = read_preset("ppo").n_envs
    for factor in (0.25, 2):
        ppo = make_sb3("ppo", envs(int(n_envs * factor)))
        assert ppo.batch_size == read_preset("ppo").hyperparams["batch_size"] * factor  # type: ignore[attr-defined]
    assert make_sb3("ppo", envs(8), batch_size=16).batch_size == 16  # type: ignore[attr-defined]

    preset = read_preset("sac")
    sac = make_sb3("sac", envs(preset.n_envs * 2))
    assert isinstance(sac, SAC)
    assert (sac.gradient_steps, sac.batch_size) == (
        preset.hyperparams["gradient_steps"] * 2,
        preset.hyperparams["batch_size"],
    )
    assert make_sb3("sac", envs(1)).gradient_steps == 1  # type: ignore[attr-defined]
    assert make_sb3("sac", envs(4), gradient_steps=-1).gradient_steps == -1  # type: ignore[attr-defined]

    (tmp_path / "mine.yml").write_text("default: {n_envs: 4, n_timesteps: 96, n_steps: 4, batch_size: 8}")
    ppo = make_sb3("ppo", envs(4), preset=tmp_path / "mine.yml")
    assert ppo.n_steps == 6  # type: ignore[attr-defined]


def test_single_policy_kwargs_are_replaced_and_the_others_stay() -> None:
    model: Any = make_sb3("sac", envs(2), seed=0, policy_kwargs={"log_std_init": -1.0})
    assert model.actor.log_std_init == -1.0
    assert model.actor.net_arch == read_preset("sac").hyperparams["policy_kwargs"]["net_arch"] == [128, 128]


@pytest.mark.parametrize(
    ("algorithm", "overrides", "message"),
    [
        ("dreamer", {}, r"'dreamer'.*\['a2c', 'ppo', 'sac', 'td3', 'tqc', 'trpo'\]"),
        ("ppo", {"entropy": 1}, r"PPO takes no \['entropy'\].*'ent_coef'"),
        ("ppo", {"noise_std": 1}, r"PPO takes no \['noise_std'\]"),
        ("sac", {"clip_range": 0.2}, r"SAC takes no \['clip_range'\]"),
        ("sac", {"policy_kwargs": {"layers": [64]}}, r"SACPolicy takes no policy_kwargs \['layers'\].*'net_arch'"),
        ("sac", {"policy_kwargs": "dict(net_arch=[64])"}, "must be a mapping; code is not evaluated"),
        ("ppo", {"learning_rate": "cos_0.1"}, "learning_rate='cos_0.1'.*lin_0.001"),
        ("ppo", {"learning_rate": "lin_fast"}, "learning_rate='lin_fast'"),
        ("td3", {"noise_type": "pink"}, "noise_type='pink'.*'normal'"),
        ("td3", {"noise_std": -1}, "noise_std=-1"),
    ],
)
def test_what_an_algorithm_does_not_know_is_refused(algorithm: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sb3(algorithm, envs(2), **overrides)


def test_a_preset_of_ones_own_is_taken_and_a_wrong_one_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    entry = {"n_envs": 4, "n_timesteps": 1e3, "policy": "MlpPolicy", "n_steps": 9, "batch_size": 12}
    path.write_text(yaml.safe_dump({"default": entry, "Prance-Tiny-v0": {**entry, "n_steps": 3}}))
    ppo = make_sb3("ppo", envs(4), preset=path)
    assert (ppo.n_steps, ppo.batch_size, ppo.gamma) == (9, 12, 0.99)  # type: ignore[attr-defined]
    assert read_preset("ppo", path, "prance_env:Prance-Tiny-v0").hyperparams["n_steps"] == 3
    assert read_preset("ppo", path, "Prance-Digits-v0").n_timesteps == 1000
    for wrong, message in [
        ({"default": {**entry, "gama": 1}}, r"mine\.yml: PPO takes no \['gama'\]"),
        ({"default": {**entry, "normalize": True}}, r"PPO takes no \['normalize'\]"),
        ({"default": {**entry, "policy": "CnnPolicy"}}, "policy='CnnPolicy' must be 'MlpPolicy'"),
        ({"default": {**entry, "n_envs": 0}}, "n_envs=0"),
        ({"default": {"n_steps": 3}}, "n_envs is missing"),
        ({"default": {**entry, "batch_size": 0}}, "default: batch_size=0 must be greater than or equal to 1"),
        ({"default": {**entry, "gamma": "high"}}, "gamma='high' must be a valid number"),
        ({"default": {**entry, "ent_coef": [1]}}, "PPO: ent_coef=.1. must be a valid number"),
        ({"default": {**entry, "env_kwargs": [1]}}, "env_kwargs=.1. must be"),
        ({"CartPole-v1": entry}, "under 'Prance-Digits-v0' or 'default'"),
        ([], "the whole=.. must be"),
    ]:
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ValueError, match=message):
            read_preset("ppo", path, "Prance-Digits-v0")
    for text in ("default: {", "default: !!python/object/apply:os.system [ls]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.yml is no YAML file"):
            read_preset("ppo", path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        read_preset("ppo", tmp_path / "nowhere.yml")


def test_the_entry_for_the_environment_is_taken_before_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    entry = {"n_envs": 4, "n_timesteps": 96, "n_steps": 9, "batch_size": 12}
    for entries in ({"default": entry, ENV_ID: {**entry, "n_steps": 3}}, {ENV_ID: {**entry, "n_steps": 3}}):
        path.write_text(yaml.safe_dump(entries))
        for env in (envs(4), make_vec_env(ENV_ID, 4)):
            assert make_sb3("ppo", env, preset=path).n_steps == 3  # type: ignore[attr-defined]


def test_without_sb3_contrib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sb3_contrib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ModuleNotFoundError, match=r"'tqc'.*pip install -e '\.\[contrib\]'"):
        make_sb3("tqc", envs(2))
    assert isinstance(make_sb3("td3", envs(2)), TD3)


def test_hyperparams_are_checked_against_the_class_that_takes_them() -> None:
    check_hyperparams(PPO, {"vf_coef": 1, "policy_kwargs": {"log_std_init": 0}})
    with pytest.raises(ValueError, match="vf_coef"):
        check_hyperparams(SAC, {"vf_coef": 1})
