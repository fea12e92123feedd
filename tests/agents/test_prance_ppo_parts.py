"""Rollouts, advantages and the policy of PrancePPO against slow or independent versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from guess_env import ACTION, BOX, OBSERVATION, QUICK, Guess, assert_same, random_rollout, state_of
from helpers import random_net
from noise_envs import TINY, noise_kwargs, tiny_kwargs

from agents import PrancePPO, PrancePPOConfig, starting_action
from agents.prance_ppo.algorithm import _seed_of
from agents.prance_ppo.policy import GaussianPolicy
from agents.prance_ppo.rollout import Rollout, advantages_of, collect, gae
from prance_env import PranceVectorEnv
from supernet import SearchSpace, SubnetConfig


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.9), (1.0, 0.95), (0.7, 0.0), (0.5, 1.0), (1.0, 1.0)])
def test_advantages_are_sums_over_the_rest_of_the_own_episode(gamma: float, gae_lambda: float) -> None:
    data = random_rollout(17, 9)
    found = gae(**data, gamma=gamma, gae_lambda=gae_lambda)
    for lane in range(9):
        rewards, values, next_values, ends = (data[k][:, lane].tolist() for k in data)
        for t in range(17):
            expected, weight = 0.0, 1.0
            for later in range(t, 17):
                expected += weight * (rewards[later] + gamma * next_values[later] - values[later])
                weight *= gamma * gae_lambda
                if ends[later]:
                    break
            assert found[t, lane].item() == pytest.approx(expected, abs=1e-12)


def test_with_lambda_one_an_advantage_is_the_return_minus_the_value() -> None:
    data = random_rollout(12, 5)
    data["ends"][-1] = True
    data["next_values"][-1] = 0
    found = gae(**data, gamma=0.8, gae_lambda=1.0)
    returns = torch.zeros(5, dtype=torch.float64)
    for t in range(11, -1, -1):
        returns = data["rewards"][t] + 0.8 * returns * ~data["ends"][t]
        torch.testing.assert_close(found[t], returns - data["values"][t])


def test_no_reward_of_another_episode_or_environment_changes_an_advantage() -> None:
    data = random_rollout(14, 4)
    before = gae(**data, gamma=0.9, gae_lambda=0.9)
    end = int(data["ends"][:, 1].nonzero()[0])
    data["rewards"][end + 1 :, 1] += 100
    data["rewards"][:, 2] += 100
    after = gae(**data, gamma=0.9, gae_lambda=0.9)
    assert torch.equal(before[: end + 1, 1], after[: end + 1, 1])
    assert torch.equal(before[:, [0, 3]], after[:, [0, 3]])
    assert (before[end + 1 :, 1] != after[end + 1 :, 1]).all()


def test_a_truncated_episode_is_worth_its_last_observation_and_a_terminated_one_nothing() -> None:
    policy = GaussianPolicy(1, BOX, (), "tanh")
    with torch.no_grad():
        policy.critic[0].weight.fill_(1)  # the value is the observation
    observations = torch.arange(1.0, 10.0).view(3, 3, 1)
    none = torch.zeros(3, dtype=torch.bool)
    rollout = Rollout(
        observations,
        torch.zeros(2, 3, ACTION),
        torch.full((2, 3), 0.5),
        terminated=torch.stack([torch.tensor([True, False, False]), none]),
        truncated=torch.stack([torch.tensor([False, True, False]), none]),
        final_observations=torch.tensor([[70.0]]),
    )
    advantages, values = advantages_of(rollout, policy, gamma=0.5, gae_lambda=0.8)
    assert values.tolist() == [[1, 2, 3], [4, 5, 6]]
    later = [0.5 + 0.5 * after - before for before, after in ((4, 7), (5, 8), (6, 9))]
    assert advantages[1].tolist() == later
    assert advantages[0].tolist() == pytest.approx([0.5 - 1, 0.5 + 35 - 2, 0.5 + 3 - 3 + 0.4 * later[2]])


def test_a_rollout_holds_what_the_environment_gave_and_it_gets_clipped_actions() -> None:
    env = Guess(16, end=0.3, cut=0.3)
    policy = GaussianPolicy(OBSERVATION, BOX, (8,), "tanh", std=2.0)
    first, _ = env.reset(seed=0)
    rollout = collect(env, policy, first, 6, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(rollout.observations[0], first)
    np.testing.assert_array_equal(rollout.observations[-1], env.observation)
    assert rollout.observation is env.observation
    assert rollout.actions.abs().max() > 1
    np.testing.assert_array_equal(np.stack(env.received), rollout.actions.clamp(-1, 1))
    assert not (rollout.terminated & rollout.truncated).any()
    where = rollout.truncated.nonzero()
    assert len(where) == len(rollout.final_observations) > 5
    for (t, lane), observation in zip(where.tolist(), rollout.final_observations, strict=True):
        torch.testing.assert_close(observation, rollout.observations[t, lane] + 100)
    ended = int((rollout.terminated | rollout.truncated).sum())
    assert {k: len(v) for k, v in rollout.final_infos.items()} == dict.fromkeys(
        ("is_success", "macs_fraction", "num_tokens"), ended
    )
    assert (rollout.final_infos["macs_fraction"] == 0.5).all()


class OnDevice(Guess):
    """The same environment in tensors, with the final observations as one tensor."""

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return torch.from_numpy(super().reset(seed=seed)[0]), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert isinstance(actions, torch.Tensor)
        *arrays, infos = super().step(actions.numpy())
        if infos:
            rows = [np.zeros(OBSERVATION) if o is None else o for o in infos["final_obs"]]
            infos["final_obs"] = torch.from_numpy(np.stack(rows))
            infos["final_info"] = {k: torch.from_numpy(v) for k, v in infos["final_info"].items()}
        return (*(torch.from_numpy(a) for a in arrays), infos)  # type: ignore[return-value]


def test_an_environment_of_tensors_is_trained_on_without_arrays_and_with_the_same_result() -> None:
    agents = [PrancePPO(env, QUICK, seed=1).learn(400) for env in (Guess(16, 0.3, 0.1), OnDevice(16, 0.3, 0.1))]
    assert_same(*(state_of(agent) for agent in agents))
    assert agents[0].metrics["rollout/patches"] == agents[1].metrics["rollout/patches"]


@pytest.mark.parametrize("box", [BOX, gym.spaces.Box(np.float32([0, -3]), np.float32([1, 5]))])
def test_densities_and_entropies_are_those_of_torch(box: gym.spaces.Box) -> None:
    policy = GaussianPolicy(OBSERVATION, box, (7, 5), "relu", std=0.2)
    observations, actions = torch.randn(50, OBSERVATION), 3 * torch.randn(50, ACTION)
    normal = torch.distributions.Normal(policy.mean(observations), 0.2 * torch.as_tensor(box.high - box.low))
    torch.testing.assert_close(policy.log_prob(observations, actions), normal.log_prob(actions).sum(-1))
    torch.testing.assert_close(policy.entropy(), normal.entropy().sum(-1)[0])
    assert policy.log_prob(observations, actions).shape == policy.value(observations).shape == (50,)


def test_samples_have_the_mean_and_the_deviation_and_leave_the_box() -> None:
    box = gym.spaces.Box(np.float32([0, -3]), np.float32([1, 5]))
    policy = GaussianPolicy(OBSERVATION, box, (8,), "relu", std=0.3)
    observation = torch.randn(1, OBSERVATION).expand(20_000, -1)
    actions = policy.sample(observation, torch.Generator().manual_seed(0))
    torch.testing.assert_close(actions.mean(0), policy.mean(observation)[0], atol=0.05, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.3, 2.4]), rtol=0.03, atol=0)
    assert (actions[:, 0] < 0).any()
    assert (actions[:, 1] > 5).any()


def test_an_untrained_policy_can_start_at_another_action_in_every_entry() -> None:
    start = tuple(np.linspace(0.1, 0.9, ACTION).tolist())
    policy = GaussianPolicy(OBSERVATION, BOX, (64, 64), "relu", initial_action=start)
    mean = policy.mean(torch.zeros(3, OBSERVATION))
    expected = torch.tensor(BOX.low) + torch.tensor(start) * torch.tensor(BOX.high - BOX.low)
    torch.testing.assert_close(mean, expected.expand_as(mean), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=f"initial_action has 7 entries, actions have {ACTION}"):
        GaussianPolicy(OBSERVATION, BOX, (64, 64), "relu", initial_action=(0.5,) * 7)


def test_a_subnet_is_where_a_policy_starts() -> None:
    space = SearchSpace((1, 2, 2), (16, 32, 48), (1, 2))
    actions = torch.rand(1, space.num_decisions, space.action_size, generator=torch.Generator().manual_seed(0))
    subnet = SubnetConfig.from_actions(space, actions)
    start = starting_action(subnet, space)
    np.testing.assert_allclose(start, np.clip(subnet.to_actions(space)[0].mean(0), 0.05, 0.95))
    assert (
        PrancePPOConfig.from_dict(PrancePPOConfig.tuned(initial_action=list(start)).to_dict()).initial_action == start
    )
    assert starting_action(SubnetConfig.full(space), space) == (0.95,) * space.action_size
    with pytest.raises(ValueError, match="one subnet, not at 2"):
        starting_action(SubnetConfig.full(space, 2), space)


@pytest.mark.parametrize("box", [BOX, gym.spaces.Box(0, 1, (ACTION,), np.float32)])
def test_an_untrained_policy_acts_alike_everywhere_and_its_mean_never_leaves_the_box(box: gym.spaces.Box) -> None:
    policy = GaussianPolicy(OBSERVATION, box, (64, 64), "relu", initial_action=0.8)
    mean = policy.mean(torch.randn(200, OBSERVATION))
    torch.testing.assert_close(
        (mean - torch.tensor(box.low)) / torch.tensor(box.high - box.low), torch.full_like(mean, 0.8), atol=0.05, rtol=0
    )
    for net, gain in ((policy.actor, 0.01), (policy.critic, 1.0)):
        weights = [layer.weight for layer in net if isinstance(layer, torch.nn.Linear)]
        for weight, expected in zip(weights, (1.0, 1.0, gain), strict=True):
            rows = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(rows @ rows.T, expected**2 * torch.eye(len(rows)), atol=1e-5, rtol=0)
    with torch.no_grad():
        policy.actor[-1].weight.mul_(1e5)
    extreme = policy.mean(torch.randn(200, OBSERVATION)).detach().numpy()
    assert (extreme >= box.low).all()
    assert (extreme <= box.high).all()


@pytest.mark.parametrize("changes", [{"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}])
def test_patches_are_counted_without_the_tokens_in_front_of_them(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(TINY, **changes)
    env = PranceVectorEnv(4, "SAME_STEP", **noise_kwargs(random_net(config), tmp_path))
    everything: dict[str, Any] = {"initial_action": 0.999, "initial_std": 1e-6, "final_std": 1e-6}
    agent = PrancePPO(env, PrancePPOConfig.paper(n_envs=4, n_steps=3, hidden=(8,), n_epochs=1, **everything))
    assert agent.learn(12).metrics["rollout/patches"] == config.num_patches


def test_an_interrupted_rollout_is_followed_by_a_reset_also_where_its_place_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PrancePPOConfig.paper(n_envs=4, n_steps=2, hidden=(8,), restart_every=0)
    kwargs = tiny_kwargs(tmp_path / "net")
    env, other, fresh = (PranceVectorEnv(4, "SAME_STEP", **kwargs) for _ in range(3))
    agent, steps, step = PrancePPO(env, config).learn(8), [0], env.step

    def interrupted(actions: Any) -> Any:
        steps[0] += 1
        if steps[0] == 2:
            raise KeyboardInterrupt
        return step(actions)

    monkeypatch.setattr(env, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(8, reset_num_timesteps=False)
    monkeypatch.undo()
    agent.save(tmp_path / "agent")
    resumed = PrancePPO.load(tmp_path / "agent", other)
    resumed.go_to(agent.place())
    expected, _ = fresh.reset(seed=_seed_of(agent.seed, agent.num_timesteps))
    for one in (agent, resumed):
        np.testing.assert_array_equal(one._collect(one._env()).observations[0], expected)
        assert one._running.shape == (4, 2)


def test_making_an_agent_reseeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    PrancePPO(Guess(2), QUICK, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeds
