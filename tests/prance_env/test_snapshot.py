"""Snapshots: whatever follows is the same as without them, bit for bit, and foreign ones are refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from helpers import ENV_ID, comparable

from prance_env import Outcome, PranceEnv, PranceVecEnv, PranceVectorEnv, register_reward
from prance_env.rewards.outcome import REWARDS
from supernet import Supernet, runtime, save_pretrained

N = 4
KWARGS: dict[str, Any] = {"cost_conditioning": (0.05, 0.5), "reward": {"mode": "potential"}}


def make_envs(mode: AutoresetMode | str = "SAME_STEP", num_envs: int = N, **kwargs: Any) -> PranceVectorEnv:
    envs = gym.make_vec(ENV_ID, num_envs, autoreset_mode=mode, **{**KWARGS, **kwargs})
    assert isinstance(envs, PranceVectorEnv)
    return envs


def play(envs: PranceVectorEnv, seed: int, steps: int) -> list[Any]:
    """Everything returned by random steps with partial resets in between."""
    rng, rows = np.random.default_rng(seed), []
    over = np.zeros(N, dtype=bool)
    for _ in range(steps):
        if envs.autoreset_mode == AutoresetMode.DISABLED and over.any():
            rows.append(plain(envs.reset(options={"reset_mask": over.copy()})))
            over[:] = False
        step = envs.step(rng.uniform(-1, 1, envs.action_space.shape or ()).astype(np.float32))
        over = step[2]
        rows.append(plain(step))
        if rng.random() < 0.3:
            mask = rng.random(N) < 0.5
            if mask.any():
                rows.append(plain(envs.reset(options={"reset_mask": mask})))
                over &= ~mask
    return rows


def plain(value: Any) -> Any:
    """For `==`, bit for bit."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return comparable([None if v is None else v for v in value] if value.dtype == object else value)


def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("steps", [0, 1, 4, 7])
def test_a_restored_environment_goes_on_bit_for_bit(
    mode: AutoresetMode, steps: int, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    envs = make_envs(mode, **tiny)
    envs.reset(seed=steps)
    play(envs, 1, steps)
    if mode == AutoresetMode.DISABLED and envs.lanes.terminated().any():
        envs.reset(options={"reset_mask": envs.lanes.terminated()})
    state = through_a_file(envs.state_dict(), tmp_path / "state.pt")
    expected = play(envs, 2, 9)
    fresh = make_envs(mode, **tiny)
    fresh.load_state_dict(state)
    assert play(fresh, 2, 9) == expected
    envs.load_state_dict(state)
    assert play(envs, 2, 9) == expected


def test_taking_a_snapshot_changes_nothing_and_it_is_no_view_of_the_episodes() -> None:
    envs, untouched = make_envs(), make_envs()
    for e in (envs, untouched):
        e.reset(seed=0)
        play(e, 0, 2)
    state = envs.state_dict()
    before = copy.deepcopy(state)
    other = make_envs()
    other.load_state_dict(state)
    for part in state["parts"]:
        for values in (part["episodes"], part["state"] or {}):
            for kind in values.values():
                for value in kind.values():
                    if isinstance(value, torch.Tensor):
                        value.zero_()
    again = make_envs()
    again.load_state_dict(before)
    expected = play(untouched, 1, 5)
    assert play(envs, 1, 5) == play(other, 1, 5) == play(again, 1, 5) == expected


def test_loading_returns_the_current_observations_and_infos() -> None:
    envs = make_envs()
    envs.reset(seed=0)
    observations, *_, infos = envs.step(np.zeros(envs.action_space.shape or (), dtype=np.float32))
    returned = make_envs().load_state_dict(envs.state_dict())
    assert plain(returned) == plain((observations, infos))
    as_tensors = make_envs(output="torch").load_state_dict(envs.state_dict())[0]
    np.testing.assert_array_equal(as_tensors.numpy(), observations)


@pytest.mark.slow
def test_loading_returns_the_current_observations_where_tiles_run(tiny: dict[str, Any]) -> None:
    pytest.importorskip("triton")
    envs = make_envs(num_envs=2, **tiny)
    with runtime.use("tiles"):
        envs.reset(seed=0)
        envs.step(np.array([[1.0], [-1.0]], dtype=np.float32).repeat(envs.action_space.shape[1], 1))
        for masked in (False, True):  # lanes that were together in their last step, and that stand apart
            if masked:
                envs.reset(options={"reset_mask": np.array([False, True])})
            expected = plain(envs.lanes.observations().numpy())
            assert plain(envs.load_state_dict(envs.state_dict())[0]) == expected


def test_loading_asks_a_users_reward_function_nothing() -> None:
    asked: list[int] = []

    @register_reward("counting")
    def counting(outcome: Outcome) -> Any:
        asked.append(int(outcome.decision[0]))
        return outcome.accuracy

    try:
        envs = make_envs(reward={"function": "counting"})
        envs.reset(seed=0)
        envs.step(envs.action_space.sample())
        envs.load_state_dict(envs.state_dict())
        assert asked == [1]
    finally:
        REWARDS.remove("counting")


def test_the_single_environment_goes_on_bit_for_bit_also_with_an_own_generator(tmp_path: Path) -> None:
    def make() -> PranceEnv:
        env = gym.make(ENV_ID, **KWARGS).unwrapped
        assert isinstance(env, PranceEnv)
        return env

    def rest(env: PranceEnv) -> list[Any]:
        action = np.full(env.action_space.shape or (), 0.3, dtype=np.float32)
        rows: list[Any] = []
        while not rows or not rows[-1][2]:
            rows.append(comparable(env.step(action)))
        return [*rows, comparable(env.reset()), comparable(env.step(action)), env.np_random.random()]

    for seed in (3, None):
        env, fresh = make(), make()
        env.reset(seed=seed)
        obs, *_, info = env.step(np.zeros(env.action_space.shape or (), dtype=np.float32))
        state = through_a_file(env.state_dict(), tmp_path / "state.pt")
        expected = rest(env)
        assert comparable(fresh.load_state_dict(state)) == comparable((obs, info))
        assert rest(fresh) == expected


def test_an_environment_of_gymnasium_goes_on_from_a_state_after_one_reset() -> None:
    env, fresh = (gym.make(ENV_ID, render_mode="rgb_array", **KWARGS) for _ in range(2))
    env.reset(seed=0)
    state = env.unwrapped.state_dict()  # type: ignore[attr-defined]
    action = np.ones(env.action_space.shape or (), dtype=np.float32)
    fresh.reset()  # which the wrappers of gym.make count, and the page asks for
    fresh.unwrapped.load_state_dict(state)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(fresh.render(), env.render())  # type: ignore[arg-type]
    assert comparable(fresh.step(action)) == comparable(env.step(action))


def test_the_sb3_face_goes_on_bit_for_bit() -> None:
    first, second = (PranceVecEnv(make_envs()) for _ in range(2))
    first.seed(2)
    first.reset()
    actions = np.zeros((N, *(first.action_space.shape or ())), dtype=np.float32)
    first.step(actions)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        a, b = first.step(actions), second.step(actions)
        assert [comparable(x) for x in a] == [comparable(x) for x in b]


PLAY = f"""
import sys, torch, numpy as np, gymnasium as gym, prance_env

def make():
    return gym.make_vec({ENV_ID!r}, 8, autoreset_mode="SAME_STEP", split="val")

def play(envs, start, end):
    for number in range(start, end):
        actions = np.random.default_rng(number).uniform(-1, 1, envs.action_space.shape).astype(np.float32)
        obs, reward, *_ = envs.step(actions)
        yield f"{{number}} {{obs.tobytes().hex()}} {{reward.tobytes().hex()}}"
"""
GO_ON = """
torch.set_num_threads(1)
envs = make()
envs.load_state_dict(torch.load(sys.argv[1], weights_only=True))
print(*play(envs, 5, 10), sep="\\n")
"""


@pytest.mark.slow
def test_another_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(PLAY, names)
    envs = names["make"]()
    envs.reset(seed=0)
    assert len(list(names["play"](envs, 0, 5))) == 5
    torch.save(envs.state_dict(), tmp_path / "state.pt")
    expected = list(names["play"](envs, 5, 10))
    command = [sys.executable, "-c", PLAY + GO_ON, str(tmp_path / "state.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_envs": N + 1}, ["num_envs=4 instead of 5"]),
        ({"mode": "DISABLED"}, ["autoreset_mode='SAME_STEP' instead of 'DISABLED'"]),
        ({"split": "val"}, ["split='train' instead of 'val'", "images=16384 instead of 4096"]),
        ({"reward": {"mode": "terminal"}}, ["reward=", "'potential'", "'terminal'"]),
        ({"observation": "constant"}, ["observation='cls' instead of 'constant'"]),
        ({"normalize_actions": False}, ["normalize_actions=True instead of False"]),
        ({"cost_conditioning": None}, ["cost_conditioning=", "instead of None"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_state_of_another_environment_is_refused_and_nothing_changes(
    changes: dict[str, Any], words: list[str]
) -> None:
    envs, other, untouched = make_envs(), make_envs(**changes), make_envs(**changes)
    for e in (envs, other, untouched):
        e.reset(seed=0)
    with pytest.raises(ValueError, match="another environment") as caught:
        other.load_state_dict(envs.state_dict())
    assert [w for w in words if w not in str(caught.value)] == []
    actions = np.zeros(other.action_space.shape or (), dtype=np.float32)
    assert plain(other.step(actions)) == plain(untouched.step(actions))


def test_a_state_of_other_weights_is_refused(digits_net: Supernet, tmp_path: Path) -> None:
    save_pretrained(digits_net, tmp_path)
    envs = make_envs(checkpoint=str(tmp_path))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="another environment: weights="):
        make_envs().load_state_dict(envs.state_dict())


def test_what_is_no_state_is_refused_and_nothing_changes() -> None:
    envs, untouched = make_envs(), make_envs()
    for e in (envs, untouched):
        e.reset(seed=0)
        play(e, 0, 1)
    good = envs.state_dict()

    def without(*path: Any) -> dict[str, Any]:
        bad: Any = copy.deepcopy(good)
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return bad

    foreign = [None, {}, {"format": 0}, [1], {**good, "format": 2}]
    damaged = [
        without("generators"),
        without("parts"),
        without("parts", 0),
        without("generators", 0),
        without("parts", 0, "lanes"),
        without("parts", 0, "state", "tensors"),
        without("parts", 0, "episodes", "arrays", "reward"),
        {**good, "generators": [3] * N},
        {**good, "parts": good["parts"] * 2},
    ]
    for state in [*foreign, *damaged]:
        with pytest.raises(ValueError, match=r"is not a state|damaged|another environment") as caught:
            envs.load_state_dict(state)  # type: ignore[arg-type]
        assert "state_dict()" in str(caught.value) or "each of the 4" in str(caught.value)
    assert play(envs, 1, 4) == play(untouched, 1, 4)


def test_there_is_no_state_before_the_first_reset() -> None:
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        make_envs().state_dict()
    env: Any = gym.make(ENV_ID).unwrapped
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.state_dict()
