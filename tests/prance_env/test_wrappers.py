"""Dict observations and discrete actions, single and in batches, and the agents that need them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from helpers import ENV_ID
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.evaluation import evaluate_policy

from prance_env import PranceVecEnv, make_sb3_env, observation_layout
from prance_env.wrappers import (
    DictObservation,
    DiscreteActions,
    MultiDiscreteActions,
    VectorDictObservation,
    VectorDiscreteActions,
    VectorMultiDiscreteActions,
    preset_actions,
)
from supernet import supernet_config

SPACE = supernet_config("digits").space
N = 3
Wrapper = Callable[..., Any]
PAIRS = [
    (DictObservation, VectorDictObservation),
    (DiscreteActions, VectorDiscreteActions),
    (MultiDiscreteActions, VectorMultiDiscreteActions),
]


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", [single for single, _ in PAIRS])
@pytest.mark.parametrize("kwargs", [{}, {"observation": "constant", "normalize_actions": False}])
def test_gymnasiums_checker_has_nothing_to_say_but_that_there_is_a_wrapper(
    wrapper: Wrapper, kwargs: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(wrapper(gym.make(ENV_ID, **kwargs)))


@pytest.mark.parametrize("wrapper", [single for single, _ in PAIRS])
def test_the_checker_of_stable_baselines3_has_nothing_to_say(wrapper: Wrapper) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(wrapper(gym.make(ENV_ID)))


@pytest.mark.slow
@pytest.mark.parametrize(("single", "vector"), PAIRS)
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_lanes_of_a_wrapped_batch_are_wrapped_single_environments(
    single: Wrapper, vector: Wrapper, mode: AutoresetMode, output: str
) -> None:
    envs = vector(gym.make_vec(ENV_ID, N, autoreset_mode=mode, output=output))
    singles = [single(gym.make(ENV_ID)) for _ in range(N)]
    assert envs.single_observation_space == singles[0].observation_space
    assert envs.single_action_space == singles[0].action_space
    envs.action_space.seed(0)

    def same(observations: Any, lane: int, expected: Any) -> None:
        if isinstance(expected, dict):
            assert list(observations) == list(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(np.asarray(observations[name][lane]), value, atol=1e-5)
        else:
            np.testing.assert_allclose(np.asarray(observations[lane]), expected, atol=1e-5)

    observations, _ = envs.reset(seed=5)
    for lane, env in enumerate(singles):
        same(observations, lane, env.reset(seed=5 + lane)[0])
    for _ in range(SPACE.num_decisions):
        actions = envs.action_space.sample()
        observations, rewards, terminated, _, infos = envs.step(
            torch.as_tensor(actions) if output == "torch" else actions
        )
        final = infos.get("final_obs", observations)
        for lane, env in enumerate(singles):
            obs, reward, over, _, _ = env.step(actions[lane])
            assert over == bool(terminated[lane])
            assert float(rewards[lane]) == pytest.approx(reward, abs=1e-5)
            if isinstance(final, np.ndarray) and final.dtype == object:
                same(
                    {k: v[None] for k, v in final[lane].items()} if isinstance(obs, dict) else final[lane][None], 0, obs
                )
            else:
                same(final, lane, obs)
            if over and mode == AutoresetMode.SAME_STEP:
                same(observations, lane, env.reset()[0])
    assert terminated.all()


def test_the_parts_of_an_observation_are_those_of_the_layout() -> None:
    kwargs = {"observation": "cls_only", "cost_conditioning": (0.1, 1)}
    env = gym.make(ENV_ID, **kwargs)
    layout = observation_layout(supernet_config("digits"), "cls_only", cost_conditioning=True)
    parts, _ = DictObservation(gym.make(ENV_ID, **kwargs)).reset(seed=0)
    flat, _ = env.reset(seed=0)
    assert list(parts) == list(layout)
    for name, place in layout.items():
        np.testing.assert_array_equal(parts[name], flat[place])


@pytest.mark.parametrize("normalize_actions", [True, False])
def test_a_number_stands_for_its_preset(normalize_actions: bool) -> None:
    presets = [[0.0] * SPACE.action_size, [1.0] * SPACE.action_size, [*[0.5, 1, 0] * 2, 0.25]]
    env = DiscreteActions(gym.make(ENV_ID, normalize_actions=normalize_actions), presets)
    assert env.action_space.n == 3
    raw = gym.make(ENV_ID, normalize_actions=normalize_actions)
    for number, preset in enumerate(presets):
        box = 2 * np.array(preset) - 1 if normalize_actions else np.array(preset)
        env.reset(seed=1)
        raw.reset(seed=1)
        for kind in (int, np.int64, np.array, torch.tensor):
            np.testing.assert_allclose(env.action(kind(number)), box)
        a, b = env.step(number), raw.step(box.astype(np.float32))
        np.testing.assert_array_equal(a[0], b[0])
        assert a[4]["macs"] == b[4]["macs"]


def test_the_default_presets_range_from_the_smallest_to_the_full_network() -> None:
    rows = preset_actions(SPACE)
    assert len(rows) == 12 == DiscreteActions(gym.make(ENV_ID)).action_space.n
    assert rows[0] == [0.0] * SPACE.action_size
    assert rows[-1] == [1.0] * SPACE.action_size
    assert len({tuple(row) for row in rows}) == 12


def test_every_number_of_a_multi_discrete_action_is_a_choice() -> None:
    env = MultiDiscreteActions(gym.make(ENV_ID), keep_levels=4)
    blocks = SPACE.blocks_per_decision
    counts = [len(SPACE.mlp_ratios)] * blocks + [len(SPACE.embed_dims)] * blocks + [4]
    assert env.action_space.nvec.tolist() == counts
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    number = rng.integers(counts)
    info = env.step(number)[4]
    group = list(SPACE.blocks(1))
    assert info["mlp_ratio"][group].tolist() == [SPACE.mlp_ratios[i] for i in number[:blocks]]
    assert info["embed_dim"][group].tolist() == [SPACE.embed_dims[i] for i in number[blocks : 2 * blocks]]
    env.reset(seed=0)
    assert env.step(np.array(counts) - 1)[4]["macs_fraction"] == 1


@pytest.mark.parametrize("bad", [-1, 12, 1.0, "1", [1], None, float("nan")])
def test_what_is_no_preset_is_refused(bad: Any) -> None:
    env = DiscreteActions(gym.make(ENV_ID))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"The action"):
        env.step(bad)


@pytest.mark.parametrize("bad", ["negative", "large", "short", "float"])
def test_what_is_no_multi_discrete_action_is_refused_and_the_episode_stays(bad: str) -> None:
    envs, untouched = (VectorMultiDiscreteActions(gym.make_vec(ENV_ID, N)) for _ in range(2))
    good = np.zeros(envs.action_space.shape or (), dtype=np.int64)
    wrong = {"negative": good - 1, "large": good + 9, "short": good[:, :-1], "float": good + 0.0}[bad]
    for e in (envs, untouched):
        e.reset(seed=0)
    with pytest.raises(ValueError, match="The action"):
        envs.step(wrong)
    np.testing.assert_array_equal(envs.step(good)[0], untouched.step(good)[0])


@pytest.mark.parametrize(
    "presets",
    [[], [[0.5]], [[2.0] * SPACE.action_size], [[float("nan")] * SPACE.action_size], [0.5] * SPACE.action_size],
)
def test_bad_presets_are_refused(presets: Any) -> None:
    with pytest.raises(ValueError, match="presets"):
        DiscreteActions(gym.make(ENV_ID), presets)


def test_bad_levels_foreign_environments_and_changed_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="keep_levels=1"):
        MultiDiscreteActions(gym.make(ENV_ID), keep_levels=1)
    for single, vector in PAIRS:
        with pytest.raises(TypeError, match="prance_env"):
            single(gym.make("CartPole-v1"))
        with pytest.raises(TypeError, match="prance_env"):
            vector(gym.make_vec("CartPole-v1", 2))
    with pytest.raises(ValueError, match="taken apart"):
        DictObservation(DictObservation(gym.make(ENV_ID)))


@pytest.mark.parametrize(
    "wrapper",
    [
        *(single for single, _ in PAIRS),
        lambda env: DiscreteActions(env, np.ones((2, SPACE.action_size))),  # type: ignore[arg-type]
        lambda env: DiscreteActions(env, list(np.ones((2, SPACE.action_size)))),
        lambda env: MultiDiscreteActions(env, np.int64(4)),  # type: ignore[arg-type]
    ],
)
def test_the_spec_of_a_wrapped_environment_is_json_and_rebuilds_it(wrapper: Wrapper) -> None:
    env = wrapper(gym.make(ENV_ID))
    text = env.spec.to_json()
    assert json.loads(text)["additional_wrappers"]
    again = gym.make(EnvSpec.from_json(text))
    assert again.observation_space == env.observation_space
    assert again.action_space == env.action_space


@pytest.mark.slow
def test_dqn_learns_in_a_discrete_batch() -> None:
    venv = make_sb3_env(n_envs=N, seed=0, wrappers=[VectorDiscreteActions])
    model = DQN("MlpPolicy", venv, learning_starts=60, train_freq=1, gradient_steps=1, batch_size=16, seed=0)
    before = [p.clone() for p in model.q_net.parameters()]
    model.learn(300)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.q_net.parameters(), strict=True))
    assert model.replay_buffer is not None
    assert len(np.unique(model.replay_buffer.actions[: model.replay_buffer.pos])) > 6
    assert evaluate_policy(model, venv, n_eval_episodes=N)[0] > 0


@pytest.mark.slow
def test_ppo_learns_from_dicts_with_multi_discrete_actions() -> None:
    venv = make_sb3_env(n_envs=N, seed=0, wrappers=[VectorDictObservation, VectorMultiDiscreteActions])
    assert isinstance(venv.observation_space, gym.spaces.Dict)
    model = PPO(
        "MultiInputPolicy", venv, n_steps=2 * SPACE.num_decisions, batch_size=N, n_epochs=2, seed=0, device="cpu"
    )
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(10 * 2 * SPACE.num_decisions * N)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    stored = model.rollout_buffer.observations["decision"].reshape(N, -1, SPACE.num_decisions)  # type: ignore[call-overload]
    np.testing.assert_array_equal(stored, np.tile(np.eye(SPACE.num_decisions), (N, 2, 1)))


def test_terminal_observations_of_dicts_are_dicts() -> None:
    venv = PranceVecEnv(VectorDictObservation(gym.make_vec(ENV_ID, N, autoreset_mode="SAME_STEP")))
    venv.reset()
    actions = np.zeros((N, *(venv.action_space.shape or ())), dtype=np.float32)
    while not (step := venv.step(actions))[2].all():
        pass
    for lane, info in enumerate(step[3]):
        assert venv.observation_space.contains(info["terminal_observation"])
        assert not info["terminal_observation"]["decision"].any()
        assert step[0]["decision"][lane].tolist() == [1, 0, 0]  # type: ignore[call-overload]


def test_the_module_is_there_without_an_import_of_its_own() -> None:
    code = "import prance_env; print(prance_env.wrappers.DictObservation.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "DictObservation", done.stderr
