"""The Stable-Baselines3 face: training, evaluation and every wrapper that users put around it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import NameNotFound
from gymnasium.vector import AutoresetMode
from helpers import ENV_ID, INFO_KEYS
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize, VecVideoRecorder

from agents import make_sb3
from prance_env import PranceVecEnv, PranceVectorEnv, make_sb3_env, observation_layout
from prance_env.wrappers import VectorDictObservation, VectorDiscreteActions

pytestmark = pytest.mark.filterwarnings("error", "default::ResourceWarning")
N = 4


def native(**kwargs: Any) -> PranceVectorEnv:
    """The same lanes without the SB3 face."""
    envs = gym.make_vec(ENV_ID, N, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def horizon(venv: VecEnv) -> int:
    """Decisions per episode."""
    return int(venv.get_attr("config")[0].space.num_decisions)


def random_actions(venv: VecEnv, steps: int) -> np.ndarray:
    """(steps, N, A) actions."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (steps, venv.num_envs, *(venv.action_space.shape or ()))).astype(np.float32)


def small_ppo(venv: VecEnv, seed: int = 0, rollouts: int = 2, **kwargs: Any) -> BaseAlgorithm:
    """A PPO that has seen a few rollouts of two episodes per lane."""
    steps = 2 * horizon(venv)
    model = make_sb3("ppo", venv, seed=seed, batch_size=steps * venv.num_envs, n_epochs=2, **kwargs)
    return model.learn(rollouts * steps * venv.num_envs)


def test_it_returns_what_the_native_batch_returns_in_the_types_of_sb3() -> None:
    venv, envs = PranceVecEnv(native()), native()
    venv.seed(6)
    np.testing.assert_array_equal(venv.reset(), envs.reset(seed=6)[0])
    for actions in random_actions(venv, 2 * horizon(venv) + 1):
        observations, rewards, dones, infos = venv.step(actions)
        expected, values, terminations, truncations, vector_info = envs.step(actions)
        assert type(observations) is np.ndarray
        assert (observations.dtype, rewards.dtype, dones.dtype) == (np.float32, np.float32, np.bool_)
        np.testing.assert_array_equal(observations, expected)
        np.testing.assert_array_equal(rewards, values.astype(np.float32))
        np.testing.assert_array_equal(dones, terminations)
        assert not truncations.any()
        for lane, info in enumerate(infos):
            if not dones[lane]:
                assert info == {}
                continue
            np.testing.assert_array_equal(info["terminal_observation"], vector_info["final_obs"][lane])
            assert info["TimeLimit.truncated"] is False
            assert set(info) == {*INFO_KEYS, "terminal_observation", "TimeLimit.truncated"}
            assert {type(info[key]) for key in INFO_KEYS} <= {int, float, bool, np.ndarray}
            final = vector_info["final_info"]
            assert [info[k] for k in ("index", "macs", "is_success")] == [
                final[k][lane] for k in ("index", "macs", "is_success")
            ]


def test_a_seed_counts_for_one_reset_and_options_choose_the_images_of_one_reset() -> None:
    venv, envs = make_sb3_env(ENV_ID, N, seed=3), native()
    for seed in (3, None):
        np.testing.assert_array_equal(venv.reset(), envs.reset(seed=seed)[0])
    venv.set_options([{"index": i} for i in (5, 6, 7, 8)])
    np.testing.assert_array_equal(venv.reset(), envs.reset(options={"index": np.array([5, 6, 7, 8])})[0])
    np.testing.assert_array_equal(venv.reset(), envs.reset()[0])
    venv.set_options([{"index": 5}, {}, {"index": 6}, {}])
    with pytest.raises(ValueError, match=r"'index'.*\[1, 3\]"):
        venv.reset()


def test_the_monitor_counts_every_decision_of_every_episode() -> None:
    venv = make_sb3_env(n_envs=N, seed=0)
    venv.reset()
    returns, episodes = np.zeros(N), 0
    for actions in random_actions(venv, 5 * horizon(venv)):
        _, rewards, dones, infos = venv.step(actions)
        returns += rewards
        for lane in np.flatnonzero(dones):
            assert infos[lane]["episode"]["l"] == horizon(venv)
            assert infos[lane]["episode"]["r"] == pytest.approx(returns[lane], abs=1e-5)
            returns[lane] = 0
            episodes += 1
    assert episodes == 5 * N


def test_returned_arrays_are_fresh_and_belong_to_the_caller() -> None:
    venv, untouched = make_sb3_env(n_envs=N, seed=0), make_sb3_env(n_envs=N, seed=0)
    given = [venv.reset()]
    np.testing.assert_array_equal(given[0], untouched.reset())
    for actions in random_actions(venv, 2 * horizon(venv)):
        for array in given:
            array.fill(77)
        observations, rewards, dones, infos = venv.step(actions)
        expected = untouched.step(actions)
        assert all((array == array.dtype.type(77)).all() for array in given)
        np.testing.assert_array_equal(observations, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        finals = [info["terminal_observation"] for info in infos if "terminal_observation" in info]
        for a, b in zip(finals, [i["terminal_observation"] for i in expected[3] if i], strict=True):
            np.testing.assert_array_equal(a, b)
        given += [observations, rewards, dones, *finals]


def test_ppo_stores_the_decisions_of_an_episode_in_order() -> None:
    venv = make_sb3_env(n_envs=N)
    model = small_ppo(venv, rollouts=1)
    assert isinstance(model, PPO)
    buffer, t = model.rollout_buffer, horizon(venv)
    # After learning, SB3's buffer is flattened lane by lane.
    rows = buffer.observations.reshape(N, 2 * t, -1)
    decision = rows[:, :, observation_layout(venv.get_attr("config")[0], "cls")["decision"]]
    expected = np.tile(np.eye(t), (2, 1))
    np.testing.assert_array_equal(decision, np.tile(expected, (N, 1, 1)))
    np.testing.assert_array_equal(buffer.episode_starts, np.tile(np.arange(2 * t) % t == 0, (N, 1)).T)


def test_the_same_seed_trains_the_same_policy_bit_for_bit() -> None:
    first, again, other = (small_ppo(make_sb3_env(n_envs=N), seed=seed).policy.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_sb3_refuses_the_native_batch_and_takes_ours() -> None:
    with pytest.raises(ValueError):
        PPO("MlpPolicy", native())  # type: ignore[arg-type]
    PPO("MlpPolicy", PranceVecEnv(native()), n_steps=horizon(PranceVecEnv(native())), batch_size=N)


def test_the_adapter_insists_on_the_autoreset_that_sb3_means() -> None:
    envs = gym.make_vec(ENV_ID, N)
    assert isinstance(envs, PranceVectorEnv)
    with pytest.raises(ValueError, match=r"SAME_STEP.*NEXT_STEP"):
        PranceVecEnv(envs)


def test_evaluate_policy_plays_whole_episodes() -> None:
    venv = make_sb3_env(n_envs=N, seed=0)
    model = make_sb3("ppo", venv, seed=0, batch_size=N)
    rewards, lengths = evaluate_policy(
        model, venv, n_eval_episodes=10, deterministic=False, return_episode_rewards=True
    )
    assert isinstance(rewards, list)
    assert lengths == [horizon(venv)] * 10
    assert len(set(rewards)) > 1


def test_eval_callback_logs_the_success_rate(tmp_path: Path) -> None:
    venv = make_sb3_env(n_envs=N)
    model = make_sb3("ppo", venv, seed=0, batch_size=2 * N * horizon(venv), n_epochs=1)
    model.set_logger(configure(str(tmp_path), ["json"]))
    callback = EvalCallback(
        make_sb3_env(n_envs=N, split="val", seed=5), eval_freq=horizon(venv), n_eval_episodes=8, verbose=0
    )
    model.learn(2 * N * horizon(venv), callback=callback)
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    rates = [row["eval/success_rate"] for row in rows if "eval/success_rate" in row]
    lengths = [row["eval/mean_ep_length"] for row in rows if "eval/mean_ep_length" in row]
    assert len(rates) == 2
    assert all(0 <= rate <= 1 for rate in rates)
    assert lengths == [horizon(venv)] * 2
    assert "rollout/success_rate" in rows[-1]


def test_it_trains_under_vec_normalize_and_terminal_observations_are_normalised_too() -> None:
    plain = make_sb3_env(n_envs=N)
    venv = VecNormalize(plain, training=False, norm_reward=False)
    statistics: Any = venv.obs_rms
    statistics.mean += 1
    plain.seed(0)
    untouched = make_sb3_env(n_envs=N, seed=0)
    np.testing.assert_array_equal(venv.reset(), venv.normalize_obs(untouched.reset()))
    for actions in random_actions(venv, horizon(venv)):
        observations, _, _, infos = venv.step(actions)
        expected, _, _, raw = untouched.step(actions)
        np.testing.assert_array_equal(observations, venv.normalize_obs(expected))
    for info, other in zip(infos, raw, strict=True):
        np.testing.assert_array_equal(info["terminal_observation"], venv.normalize_obs(other["terminal_observation"]))
    assert small_ppo(VecNormalize(make_sb3_env(n_envs=N))).num_timesteps == 4 * N * horizon(venv)


def test_videos_can_be_recorded(tmp_path: Path) -> None:
    venv = make_sb3_env(n_envs=2, seed=0, render_mode="rgb_array")
    recorder = VecVideoRecorder(venv, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=2)
    recorder.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own
        for actions in random_actions(recorder, 3):
            recorder.step(actions)
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000


def test_all_lanes_are_one_object_for_attributes_and_methods() -> None:
    venv = PranceVecEnv(native(render_mode="ansi"))
    assert venv.get_attr("render_mode") == ["ansi"] * N
    assert venv.get_attr("num_envs", indices=[0, 2]) == [N, N]
    assert venv.env_is_wrapped(Monitor, indices=1) == [False]
    venv.set_attr("note", 3)
    assert venv.get_attr("note") == [3] * N
    with pytest.raises(ValueError, match=r"'note'.*all"):
        venv.set_attr("note", 4, indices=[0])
    venv.reset()
    (texts,) = venv.env_method("render", indices=0)
    assert len(texts) == N
    with pytest.raises(RuntimeError, match="step_async"):
        venv.step_wait()
    venv.close()


def test_the_factory_passes_arguments_on_and_refuses_unknown_ones() -> None:
    venv = make_sb3_env(f"prance_env:{ENV_ID}", n_envs=2, observation="constant", split="val")
    assert venv.observation_space.shape == (horizon(venv),)
    with pytest.raises(TypeError, match="frameskip"):
        make_sb3_env(frameskip=1)
    with pytest.raises(NameNotFound, match="Prance-Digits"):
        make_sb3_env("Prance-Digit-v0")
    with pytest.raises(ValueError, match=r"CartPole-v1.*make_vec_env"):
        make_sb3_env("CartPole-v1")
    with pytest.raises(ValueError, match="n_envs=0"):
        make_sb3_env(n_envs=0)


def test_metadata_and_spec_are_where_sb3_looks_for_them(tmp_path: Path) -> None:
    venv = PranceVecEnv(native(render_mode="rgb_array"))
    assert venv.metadata["render_fps"] == venv.envs.metadata["render_fps"] == 2
    assert set(venv.metadata["render_modes"]) == {"human", "rgb_array"}
    assert venv.spec is not None
    assert venv.spec.id == ENV_ID
    assert venv.get_attr("spec")[0].id == ENV_ID
    monitor = VecMonitor(make_sb3_env(n_envs=2).venv, filename=str(tmp_path / "log"))
    monitor.close()
    assert ENV_ID in (tmp_path / "log.monitor.csv").read_text()
    recorder = VecVideoRecorder(venv, str(tmp_path), record_video_trigger=lambda step: False)
    assert recorder.frames_per_sec == 2


def test_render_tiles_the_frames_of_all_lanes_and_other_modes_are_warned_about() -> None:
    venv = make_sb3_env(n_envs=N, seed=0, render_mode="rgb_array")
    venv.reset()
    frame = venv.get_images()[0]
    picture = venv.render()
    assert frame is not None
    assert picture is not None
    assert picture.shape == (2 * frame.shape[0], 2 * frame.shape[1], 3)
    with pytest.warns(UserWarning, match="render"):
        assert venv.render(mode="ansi") is None
    plain = make_sb3_env(n_envs=N)
    with pytest.warns(UserWarning, match="render_mode"):
        assert plain.render() is None


def test_attributes_exist_or_are_missing_as_in_any_vec_env() -> None:
    venv = make_sb3_env(n_envs=N)
    assert venv.has_attr("settings")
    assert not venv.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        venv.get_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        venv.env_method("no_such_thing")
    for call in (venv.get_attr, venv.env_method, venv.env_is_wrapped):
        with pytest.raises(IndexError, match=rf"\[{N}\].*0\.\.{N - 1}"):
            call("close", indices=[0, N])  # type: ignore[operator]
    assert venv.unwrapped.get_attr("num_envs", indices=-1) == [N]


def test_seeds_are_returned_and_survive_a_reset_that_is_refused() -> None:
    venv, expected = make_sb3_env(n_envs=N), native()
    assert venv.seed(4) == [4, 5, 6, 7]
    venv.set_options({"index": -1})
    with pytest.raises(IndexError, match="index=-1"):
        venv.reset()
    np.testing.assert_array_equal(venv.reset(), expected.reset(seed=4)[0])
    assert len(set(venv.seed())) == N
    venv.set_options({"colour": 1})
    with pytest.raises(ValueError, match=r"colour.*'index'"):
        venv.reset()


def test_a_refused_action_leaves_the_adapter_ready_for_the_next() -> None:
    venv, untouched = make_sb3_env(n_envs=N, seed=0), make_sb3_env(n_envs=N, seed=0)
    good = random_actions(venv, 1)[0]
    for v in (venv, untouched):
        v.reset()
    for bad in (np.full_like(good, np.nan), good[:, :-1], good[:-1]):
        with pytest.raises(ValueError, match=r"NaN|The action"):
            venv.step(bad)
    np.testing.assert_array_equal(venv.step(good)[0], untouched.step(good)[0])
    with pytest.raises(RuntimeError, match="step_async"):
        venv.step_wait()


def test_only_batches_of_this_package_are_taken() -> None:
    with pytest.raises(TypeError, match=r"PranceVectorEnv, not"):
        PranceVecEnv(gym.make_vec("CartPole-v1", 2))


def test_attributes_are_those_of_the_wrappers_around_the_batch_and_spaces_those_of_a_lane() -> None:
    venv = make_sb3_env(n_envs=N, wrappers=[VectorDictObservation, VectorDiscreteActions])
    for name in ("observation_space", "action_space"):
        assert venv.get_attr(name) == [getattr(venv, name)] * N
    assert venv.has_attr("layout")
    assert venv.has_attr("integers")
    assert venv.get_attr("single_action_space") == [venv.action_space] * N
    (layout,) = venv.get_attr("layout", indices=0)
    venv.set_attr("layout", {"decision": layout["decision"]})
    assert set(venv.reset()) == {"decision"}
    ((observations, _),) = venv.env_method("reset", indices=0)
    assert set(observations) == {"decision"}
    assert venv.get_attr("settings")[0].observation == "cls"


def test_what_gymnasiums_wrappers_only_hand_on_is_set_where_it_is() -> None:
    venv = make_sb3_env(n_envs=N, wrappers=[VectorDictObservation, VectorDiscreteActions])
    venv.set_attr("render_mode", "ansi")
    assert venv.get_attr("render_mode") == ["ansi"] * N
    venv.reset()
    (texts,) = venv.env_method("render", indices=0)
    assert len(texts) == N
    venv.set_attr("np_random", [np.random.default_rng(lane) for lane in range(N)])
    venv.set_attr("closed", False)
    assert venv.get_attr("num_envs") == [N] * N


def test_a_reset_mask_is_refused_since_monitors_begin_to_count_anew_in_all_lanes() -> None:
    venv = make_sb3_env(n_envs=N, seed=0)
    venv.reset()
    venv.set_options([{"reset_mask": lane == 0} for lane in range(N)])
    with pytest.raises(ValueError, match=r"reset_mask.*PranceVectorEnv\.reset"):
        venv.reset()
    venv.reset()


@pytest.mark.parametrize("wrapper", [lambda venv: venv, VecNormalize])
def test_the_sums_of_the_monitor_come_and_go_with_a_state(wrapper: Any, tmp_path: Path) -> None:
    venv, other = (wrapper(make_sb3_env(n_envs=N, seed=seed)) for seed in (0, 1))
    first, *rest = random_actions(venv, horizon(venv))

    def ended(venv: Any, actions: list[Any]) -> list[tuple[float, int]]:
        for taken in actions:
            *_, infos = venv.step(taken)
        return [(info["episode"]["r"], info["episode"]["l"]) for info in infos]

    venv.reset()
    venv.step(first)
    torch.save(venv.state_dict(), tmp_path / "state.pt")
    expected = ended(venv, rest)
    other.reset()
    ended(other, [first, *rest])
    for v in (venv, other, venv):
        v.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert ended(v, rest) == expected
        assert v.unwrapped.monitor.episode_count == N


def test_a_state_without_sums_begins_them_anew_and_damaged_ones_are_refused() -> None:
    venv, envs = make_sb3_env(n_envs=N, seed=0), native()
    actions = random_actions(venv, horizon(venv))
    venv.reset()
    for taken in actions[:2]:
        venv.step(taken)
    state = venv.state_dict()
    for bad in (3, {**state["monitor"], "returns": torch.zeros(N + 1)}, {"returns": None}):
        with pytest.raises(ValueError, match=r"state is damaged.*monitor"):
            venv.load_state_dict({**state, "monitor": bad})
    envs.load_state_dict(state)  # another face does not count
    venv.load_state_dict(envs.state_dict())
    rewards = venv.step(actions[2])[1]
    assert venv.episode_lengths.tolist() == [0] * N
    envs.reset(seed=0)
    venv.load_state_dict(envs.state_dict())
    rewards = venv.step(actions[0])[1]
    np.testing.assert_array_equal(venv.episode_returns, rewards)
