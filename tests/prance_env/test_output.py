"""Tensors as output: the same numbers as numpy's, on the device, usable by autograd, owned by the caller."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from helpers import ENV_ID

from prance_env import PranceVecEnv, PranceVectorEnv
from prance_env.arrays import sent_together, to_device
from prance_env.wrappers import VectorDictObservation

N = 5
FIRST = np.arange(N) == 0


def make_envs(output: str, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> PranceVectorEnv:
    envs = gym.make_vec(ENV_ID, N, autoreset_mode=mode, output=output, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def assert_same(tensors: Any, arrays: Any, mask: np.ndarray | None = None) -> None:
    """The same nest; whole numbers and flags equal, floating-point numbers equal as float32."""
    if isinstance(arrays, dict):
        assert set(tensors) == set(arrays)
        for key in arrays:
            assert_same(tensors[key], arrays[key], arrays.get("_final_obs") if key == "final_obs" else None)
    elif isinstance(arrays, tuple):
        for a, b in zip(tensors, arrays, strict=True):
            assert_same(a, b)
    else:
        assert isinstance(tensors, torch.Tensor)
        if arrays.dtype == object:
            assert mask is not None
            tensors, arrays = tensors[torch.from_numpy(mask)], np.stack(list(arrays[mask]))
        if np.issubdtype(arrays.dtype, np.floating):
            arrays = arrays.astype(np.float32)
        assert tensors.numpy().dtype == arrays.dtype
        np.testing.assert_array_equal(tensors.numpy(), arrays)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_tensors_hold_what_the_arrays_hold(mode: AutoresetMode) -> None:
    torches, arrays = (
        make_envs("torch", mode, cost_conditioning=(0.1, 1)),
        make_envs("numpy", mode, cost_conditioning=(0.1, 1)),
    )
    assert torches.observation_space == arrays.observation_space
    assert torches.action_space == arrays.action_space
    assert_same(torches.reset(seed=0), arrays.reset(seed=0))
    rng = np.random.default_rng(0)
    for number in range(10):
        actions = rng.uniform(-1.2, 1.2, arrays.action_space.shape or ()).astype(np.float32)
        expected = arrays.step(actions)
        assert_same(torches.step(torch.from_numpy(actions) if number % 2 else actions), expected)
        if number == 1 or (mode == AutoresetMode.DISABLED and expected[2].any()):
            mask = FIRST if number == 1 else expected[2]
            assert_same(*(e.reset(options={"reset_mask": mask.copy()}) for e in (torches, arrays)))


def test_observations_can_be_trained_on_and_are_not_overwritten() -> None:
    envs = make_envs("torch")
    observations, _ = envs.reset(seed=0)
    policy = torch.nn.Linear(observations.shape[1], (envs.single_action_space.shape or ())[0])
    kept = []
    for _ in range(4):
        actions = policy(observations).tanh()
        actions.sum().backward()
        observations, rewards, _, _, infos = envs.step(actions)
        kept.append((observations, rewards, infos["macs"], copy.deepcopy((observations, rewards, infos["macs"]))))
        if "final_obs" in infos:
            infos["final_obs"].fill_(77)
    assert policy.weight.grad is not None
    for *returned, copies in kept:
        for value, before in zip(returned, copies, strict=True):
            assert torch.equal(value, before)
            value.fill_(7)


def test_final_observations_are_those_before_the_restart() -> None:
    envs, single = make_envs("torch"), gym.make(ENV_ID)
    envs.reset(seed=6)
    single.reset(seed=6)
    actions = torch.zeros(envs.action_space.shape or ())
    while "final_obs" not in (infos := envs.step(actions)[4]):
        single.step(actions[0].numpy())
    obs, _, terminated, _, info = single.step(actions[0].numpy())
    assert terminated
    assert infos["_final_obs"].all()
    np.testing.assert_allclose(infos["final_obs"][0].numpy(), obs, atol=1e-5)
    assert int(infos["final_info"]["macs"][0]) == info["macs"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_actions_may_be_tensors_of_any_number_type(dtype: torch.dtype) -> None:
    envs, expected = make_envs("torch"), make_envs("numpy")
    actions = torch.ones(envs.action_space.shape or (), dtype=dtype)
    envs.reset(seed=0)
    expected.reset(seed=0)
    assert_same(envs.step(actions), expected.step(np.ones(actions.shape, dtype=np.float32)))


def test_everything_goes_to_the_device_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ({"a": np.arange(3), "b": {"c": np.array([True, False, True])}}, np.array([0.5, 1.5]), torch.ones(2))
    calls: list[Any] = []
    send = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: calls.append(a) or send(self, *a, **k))
    on_meta = to_device(tree, torch.device("meta"))
    assert len(calls) == 1
    assert on_meta[0]["a"].device.type == "meta"
    result = to_device(tree, torch.device("cpu"))
    assert result[0]["a"].tolist() == [0, 1, 2]
    assert result[0]["b"]["c"].tolist() == [True, False, True]
    assert result[1].dtype == torch.float32
    assert result[1].tolist() == [0.5, 1.5]
    assert result[2] is tree[2]


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_every_tensor_can_be_changed_without_the_others(where: str) -> None:
    given = {"a": np.arange(3.0), "b": np.arange(3), "c": np.arange(3, dtype=np.float32)}
    tensors = to_device(given, torch.device(where))
    assert not any(t._is_view() for t in tensors.values())
    before = [t._version for t in tensors.values()]
    tensors["b"].add_(1)
    assert [t._version - v for t, v in zip(tensors.values(), before, strict=True)] == [0, 1, 0]
    assert given["b"].tolist() == [0, 1, 2]


def test_every_part_of_an_observation_can_be_changed_without_the_others() -> None:
    envs = VectorDictObservation(make_envs("torch"))
    with torch.inference_mode():
        steps = [envs.reset(seed=0)[0]]
        for _ in range(3):
            steps.append(envs.step(envs.action_space.sample())[0])
    for parts in (*steps, envs.step(envs.action_space.sample())[0]):
        before = {name: part._version for name, part in parts.items()}
        first, *others = parts
        parts[first].add_(1)
        assert [parts[name]._version for name in others] == [before[name] for name in others]
        assert not any(part.is_inference() or part._is_view() for part in parts.values())


def test_what_is_sent_together_is_found_at_its_place() -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.array([True, False, True]), np.arange(4), np.zeros((0, 2), np.float32)]
    for array, tensor in zip(arrays, sent_together(arrays, torch.device("cpu")), strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))


def test_a_reward_changed_in_place_leaves_the_graphs_of_other_returns_alone() -> None:
    envs = make_envs("torch")
    envs.reset(seed=0)
    _, rewards, _, _, infos = envs.step(envs.action_space.sample())
    weight = torch.ones(N, requires_grad=True)
    loss = (weight * infos["macs_fraction"]).sum()
    rewards.mul_(2)
    loss.backward()
    assert weight.grad is not None


def test_a_rollout_in_inference_mode_can_be_trained_on() -> None:
    envs = make_envs("torch")
    rows = []
    with torch.inference_mode():
        rows.append(envs.reset(seed=0))
        envs.reset(options={"reset_mask": FIRST.copy()})
        for _ in range(4):
            rows.append(envs.step(envs.action_space.sample()))
        envs.reset(options={"reset_mask": FIRST.copy()})
        rows.append(envs.step(envs.action_space.sample()))
    policy = torch.nn.Linear(rows[0][0].shape[1], 1)
    for observations, *rest, infos in rows:
        assert not any(t.is_inference() for t in (observations, *rest, *infos.values()) if isinstance(t, torch.Tensor))
        policy(observations).sum().backward()


def test_an_unknown_output_is_refused_and_sb3_insists_on_numpy() -> None:
    with pytest.raises(ValueError, match=r"output='jax'.*numpy.*torch"):
        make_envs("jax")
    with pytest.raises(ValueError, match=r"output='numpy', not 'torch'"):
        PranceVecEnv(make_envs("torch"))


@pytest.mark.cuda
def test_on_a_gpu_everything_stays_there() -> None:
    envs = make_envs("torch", device="cuda")
    envs.reset(seed=0)
    for _ in range(4):
        observations, *rest, infos = envs.step(torch.zeros(envs.action_space.shape or (), device="cuda"))
        assert {t.device.type for t in (observations, *rest, infos["macs"], infos["_macs"])} == {"cuda"}
