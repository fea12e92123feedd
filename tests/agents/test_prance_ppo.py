"""PrancePPO as a whole: its updates, what it learns, what it logs, and what it promises."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from guess_env import ACTION, BOX, OBSERVATION, QUICK, Guess, assert_same, state_of
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import PrancePPO, PrancePPOConfig
from agents.prance_ppo.algorithm import make_env
from agents.prance_ppo.rollout import Rollout, advantages_of
from prance_env import PranceVectorEnv


def clipped_objective(agent: PrancePPO, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of a whole rollout in PPO's words, from torch.distributions and loops."""
    c = agent.config
    advantages, values = advantages_of(rollout, agent.policy, c.gamma, c.gae_lambda)
    normed = (advantages - advantages.mean()) / advantages.std()
    policy_loss = value_loss = torch.zeros(())
    old = PrancePPO(None, c, agent.seed, spaces=(agent.observation_space, agent.action_space)).policy
    for t in range(c.n_steps):
        for lane in range(rollout.actions.shape[1]):
            observation, action = rollout.observations[t, lane], rollout.actions[t, lane]
            densities = [
                torch.distributions.Normal(p.mean(observation), p.log_std.exp()).log_prob(action).sum()
                for p in (agent.policy, old)
            ]
            ratio = (densities[0] - densities[1].detach()).exp()
            a = normed[t, lane]
            policy_loss = policy_loss - torch.minimum(ratio * a, ratio.clamp(1 - c.clip_range, 1 + c.clip_range) * a)
            target = advantages[t, lane] + values[t, lane]
            value_loss = value_loss + (agent.policy.value(observation[None])[0] - target) ** 2
    size = rollout.actions[..., 0].numel()
    return policy_loss / size, value_loss / size


def test_an_update_is_two_adam_steps_on_the_clipped_objective() -> None:
    config = PrancePPOConfig.paper(
        n_epochs=1, n_steps=5, hidden=(8, 8), max_grad_norm=0.05, initial_std=0.2, ent_coef=0
    )
    env = Guess(6, end=0.3)
    agent = PrancePPO(env, config, seed=3)
    rollout = agent._collect(env)
    policy_loss, value_loss = clipped_objective(agent, rollout)
    actor, critic = [*agent.policy.actor.parameters()], [*agent.policy.critic.parameters()]
    expected = []
    for parameters, loss, rate in ((actor, policy_loss, 1e-4), (critic, value_loss, 5e-3)):
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        assert norm > 0.05
        for p, g in zip(parameters, gradients, strict=True):
            g = g * 0.05 / norm
            expected.append(p.detach() - rate * g / (g.abs() + 1e-5))  # the first step of Adam
    metrics = agent._update(rollout)
    for p, e in zip([*actor, *critic], expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=2e-6, rtol=1e-4)
    assert metrics["train/policy_gradient_loss"] == pytest.approx(policy_loss.item(), abs=1e-6)
    assert metrics["train/value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    assert metrics["train/approx_kl"] == pytest.approx(0, abs=1e-6)


def test_every_epoch_sees_every_transition_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = PrancePPO(Guess(10), PrancePPOConfig.tuned(n_epochs=3, n_steps=2, batch_size=8, hidden=(4,)))
    batches: list[list[list[float]]] = []

    def record(observations: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        batches.append(observations.tolist())
        return torch.zeros(5)

    monkeypatch.setattr(agent, "_step", record)
    env = agent._env()
    rollout = agent._collect(env)
    agent._update(rollout)
    assert [len(b) for b in batches] == [8, 8, 4] * 3
    epochs = [[row for batch in batches[i : i + 3] for row in batch] for i in (0, 3, 6)]
    expected = sorted(rollout.observations[:-1].flatten(0, 1).tolist())
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_ratio_is_that_of_whole_actions_and_is_clipped() -> None:
    agent = PrancePPO(Guess(8), PrancePPOConfig.paper(hidden=(8,), ent_coef=0.0))
    observations, actions = torch.randn(6, OBSERVATION), 0.1 * torch.randn(6, ACTION)
    density = agent.policy.log_prob(observations, actions).detach()
    shift = torch.tensor([0.1, 0.5, 0.5, -0.1, -0.5, -0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    seen = agent._step(observations, actions, density - shift, advantages, torch.zeros(6))
    objective = [math.exp(0.1), 1.2, -math.exp(0.5), -math.exp(-0.1), -0.8, math.exp(-0.5)]
    assert seen[0].item() == pytest.approx(-np.mean(objective), abs=1e-5)
    assert seen[4].item() == pytest.approx(4 / 6)
    assert seen[3].item() == pytest.approx(float((shift.exp() - 1 - shift).mean()), abs=1e-5)


@pytest.mark.slow
def test_it_learns_the_best_action_of_every_state() -> None:
    env = Guess(64)
    agent = PrancePPO(env, PrancePPOConfig.tuned(n_steps=4, batch_size=128), seed=1).learn(16_000)
    observations, _ = env.reset(seed=99)
    error = np.abs(agent.predict(observations, deterministic=True)[0] - observations[:, :ACTION] / 2)
    assert error.mean() < 0.05
    assert error.max() < 0.25


def test_it_learns_from_rewards_that_come_later() -> None:
    class Late(Guess):
        """Only the action of the first of three steps counts, and it is paid for in the last one."""

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.clock = 0
            return super().reset(seed=seed, options=options)

        def _draw(self) -> Any:
            return np.tile(np.eye(OBSERVATION, dtype=np.float32)[self.clock], (self.num_envs, 1))

        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            self.first = actions if self.clock == 0 else self.first
            last = self.clock == 2
            rewards = -np.abs(self.first - 0.5).sum(1) * last
            self.clock = (self.clock + 1) % 3
            none = np.zeros(self.num_envs, dtype=bool)
            return self._draw(), rewards, none | last, none, {}

    agent = PrancePPO(Late(64), PrancePPOConfig.tuned(), seed=0).learn(15_000)
    action, _ = agent.predict(np.eye(OBSERVATION, dtype=np.float32)[0], deterministic=True)
    np.testing.assert_allclose(action, 0.5, atol=0.07)


def test_the_same_seed_gives_the_same_curve_bit_for_bit_and_another_one_does_not() -> None:
    def curve(seed: int) -> list[float]:
        rows: list[float] = []
        agent = PrancePPO(Guess(16, 0.3, 0.1), QUICK, seed=seed)
        agent.learn(700, callback=lambda a: rows.extend(v for k, v in a.metrics.items() if k != "time/fps"))
        return [*rows, *(v for t in state_of(agent).values() for v in t.flatten().tolist())]

    torch.manual_seed(5)
    first = curve(0)
    torch.manual_seed(6)  # what others draw does not matter
    np.testing.assert_array_equal(first, curve(0))
    assert first != curve(1)


def test_a_saved_and_loaded_agent_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    config = PrancePPOConfig.tuned(n_envs=16, n_steps=4, batch_size=16, hidden=(16,), restart_every=3, learn_std=True)
    stretch = 16 * 4 * 3
    whole = PrancePPO(Guess(16, 0.2, 0.1), config, seed=4).learn(6 * stretch)

    def stop(agent: PrancePPO) -> bool:
        if agent.num_timesteps == 2 * stretch:
            agent.save(tmp_path / "agent")
        return agent.num_timesteps < 2.5 * stretch

    PrancePPO(Guess(16, 0.2, 0.1), config, seed=4).learn(6 * stretch, callback=stop)
    resumed = PrancePPO.load(tmp_path / "agent", Guess(16, 0.2, 0.1))
    assert resumed.num_timesteps == 2 * stretch
    resumed.learn(4 * stretch, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps == 6 * stretch
    assert_same(state_of(whole), state_of(resumed))


def test_episodes_are_restarted_with_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Guess(8)
    PrancePPO(env, PrancePPOConfig.tuned(n_steps=2, batch_size=8, hidden=(4,), restart_every=3)).learn(8 * 2 * 7)
    assert len(env.seeds) == len(set(env.seeds)) == 1 + 3  # the first one to see what observations look like
    other = Guess(8)
    PrancePPO(other, PrancePPOConfig.tuned(n_steps=2, hidden=(4,), restart_every=3), seed=1).learn(8 * 2 * 7)
    assert not set(env.seeds) & set(other.seeds)
    env = Guess(8)
    PrancePPO(env, PrancePPOConfig.tuned(n_steps=2, batch_size=8, hidden=(4,), restart_every=0)).learn(8 * 2 * 7)
    assert len(env.seeds) == 1 + 1


class Shifted(Guess):
    """Observations with means and scales far from 0 and 1; the last entry never changes."""

    def _draw(self) -> Any:
        drawn = super()._draw()
        drawn[:, 1] = 5 + 0.5 * drawn[:, 1]
        drawn[:, 2] = 7
        return drawn


def test_networks_are_shown_observations_in_one_scale_that_training_does_not_change(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def note(agent: PrancePPO) -> None:
        seen.append(torch.stack([agent.policy.shift, agent.policy.scale]).clone())

    agent = PrancePPO(Shifted(16), QUICK, seed=3)
    assert not agent.policy.standardised
    agent.learn(300, callback=note)
    shift, scale = seen[0]
    uniform = 3**0.5  # one over the deviation of U(-1, 1)
    torch.testing.assert_close(shift, torch.tensor([0, 5, 7.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(scale, torch.tensor([uniform, 2 * uniform, 10]), atol=0.1, rtol=0.05)
    assert len(seen) > 2
    assert all(torch.equal(seen[0], later) for later in seen)

    plain, observation = PrancePPO(Shifted(16), QUICK, seed=0), torch.tensor([[0.3, 5.1, 7.0]])
    plain.policy.load_state_dict({**agent.policy.state_dict(), "shift": torch.zeros(3), "scale": torch.ones(3)})
    for name in ("mean", "value"):
        shown = getattr(plain.policy, name)((observation - shift) * scale)
        torch.testing.assert_close(getattr(agent.policy, name)(observation), shown)
    agent.save(tmp_path / "agent")
    loaded = PrancePPO.load(tmp_path / "agent", Shifted(16))
    loaded.learn(100, reset_num_timesteps=False)
    assert_same({"shift": shift, "scale": scale}, {k: getattr(loaded.policy, k) for k in ("shift", "scale")})


def test_the_papers_preset_shows_observations_as_they_are() -> None:
    agent = PrancePPO(Shifted(16), PrancePPOConfig.paper(n_envs=16, hidden=(8,)), seed=3).learn(100)
    assert not agent.policy.standardised
    assert len(agent.env.seeds) == 1  # type: ignore[union-attr]


def test_deviation_and_learning_rate_fall_linearly() -> None:
    seen: list[tuple[float, float]] = []
    config = PrancePPOConfig.paper(n_steps=2, hidden=(4,), actor_lr=1e-2, final_lr=0.5)
    agent = PrancePPO(Guess(8), config)
    agent.learn(8 * 2 * 10, callback=lambda a: seen.append((a.metrics["train/std"], a.metrics["train/learning_rate"])))
    stds, rates = np.array(seen).T
    np.testing.assert_allclose(stds / 2, np.linspace(0.3, 0.05, 11)[:10], rtol=1e-5)
    np.testing.assert_allclose(rates, np.linspace(1e-2, 5e-3, 11)[:10], rtol=1e-6)
    assert agent.optimizer.param_groups[1]["lr"] == pytest.approx(5e-3 * 0.55)


def test_a_learned_deviation_changes_and_an_annealed_one_gets_no_gradient() -> None:
    for learn_std in (True, False):
        agent = PrancePPO(Guess(16), PrancePPOConfig.tuned(n_steps=4, learn_std=learn_std, final_std=0.2))
        before = agent.policy.log_std.detach().clone()
        agent.learn(2_000)
        assert bool((agent.policy.log_std < before - 0.02).all()) == learn_std


def test_the_entropy_is_worth_its_weight() -> None:
    config = PrancePPOConfig.paper(hidden=(8,), ent_coef=0.3, learn_std=True, actor_lr=1e-2)
    agent = PrancePPO(Guess(8), config)
    before, entropy = agent.policy.log_std.detach().clone(), agent.policy.entropy().item()
    nothing = torch.zeros(4)
    seen = agent._step(torch.randn(4, OBSERVATION), torch.randn(4, ACTION), nothing, nothing, nothing)
    assert seen[2].item() == pytest.approx((seen[0] + seen[1]).item() - 0.3 * entropy, rel=1e-4)
    torch.testing.assert_close(agent.policy.log_std.detach(), before + 1e-2, atol=1e-4, rtol=0)


def test_tensorboard_gets_the_names_of_stable_baselines_and_what_prance_is_about(tmp_path: Path) -> None:
    PrancePPO(Guess(16, end=0.5), QUICK, tensorboard_log=str(tmp_path)).learn(64 * 5)
    (folder,) = tmp_path.iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    names = {f"rollout/{k}" for k in ("ep_rew_mean", "ep_len_mean", "accuracy", "macs_fraction", "patches")} | {
        "time/fps"
    }
    names |= {f"train/{k}" for k in ("approx_kl", "clip_fraction", "clip_range", "entropy_loss", "explained_variance")}
    names |= {f"train/{k}" for k in ("learning_rate", "loss", "policy_gradient_loss", "std", "value_loss", "n_updates")}
    assert names <= set(events.Tags()["scalars"])
    for name in names:
        rows = events.Scalars(name)
        assert [r.step for r in rows] == [64, 128, 192, 256, 320]
        assert all(math.isfinite(r.value) for r in rows)
    assert all(r.value == 0.5 for r in events.Scalars("rollout/macs_fraction"))


def test_mean_returns_are_sums_over_episodes_also_across_rollouts() -> None:
    agent = PrancePPO(Guess(2), QUICK)
    agent._running = torch.zeros(2, 2)

    def episodes(reward: float, length: float) -> dict[str, float]:
        return {"rollout/ep_rew_mean": reward, "rollout/ep_len_mean": length}

    def part(rewards: list[list[float]], ends: list[list[bool]]) -> dict[str, float]:
        none = torch.zeros(len(ends), 2, dtype=torch.bool)
        empty = torch.zeros(0)
        return agent._describe(Rollout(empty, empty, torch.tensor(rewards), torch.tensor(ends), none, empty))

    assert part([[1, 10], [2, 20]], [[False, False], [True, False]]) == episodes(3, 2)
    assert part([[4, 40]], [[False, False]]) == {}
    assert part([[5, 50]], [[True, True]]) == episodes((9 + 120) / 2, 3)


def test_predict_takes_one_observation_or_a_batch_and_stays_in_the_box() -> None:
    agent = PrancePPO(None, PrancePPOConfig.paper(hidden=(8,)), spaces=(Guess().single_observation_space, BOX))
    batch = np.random.default_rng(0).normal(size=(200, OBSERVATION)).astype(np.float32)
    actions, state = agent.predict(batch, state="kept", deterministic=True)
    assert state == "kept"
    assert actions.dtype == np.float32
    for row, action in zip(batch[:5], actions, strict=False):
        np.testing.assert_allclose(agent.predict(row, deterministic=True)[0], action, atol=1e-6)
    noisy = agent.predict(10 * batch)[0]
    assert noisy.std(0).min() > 0.3
    assert all(BOX.contains(a) for a in noisy)
    for wrong in (batch[:, :2], batch[None], np.float32(3)):
        with pytest.raises(ValueError, match=r"expected \(3,\) or \(B, 3\)"):
            agent.predict(wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": 0}, "n_steps=0.*equal to 1"),
        ({"batch_size": 1}, "batch_size=1.*equal to 2"),
        ({"gamma": 1.5}, "gamma=1.5.*equal to 1"),
        ({"clip_range": 0}, "clip_range=0 must be greater than 0"),
        ({"actor_lr": float("nan")}, "actor_lr=nan"),
        ({"initial_action": 1.0}, "initial_action=1.0 must be less than 1"),
        ({"initial_action": (0.5, 1.0)}, r"initial_action=\(0.5, 1.0\)"),
        ({"initial_action": ()}, r"initial_action=\(\)"),
        ({"activation": "gelu"}, "'gelu'.*relu"),
        ({"hidden": (64, 0)}, "hidden.1=0 must be greater than or equal to 1"),
        ({"learn_std": 1}, "learn_std=1 must be True or False"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrancePPOConfig.tuned(**settings)


def test_presets_are_what_they_say() -> None:
    c = PrancePPOConfig.paper()
    assert (c.gamma, c.gae_lambda, c.n_epochs, c.batch_size, c.clip_range, c.ent_coef) == (
        0.9,
        0.9,
        10,
        None,
        0.2,
        0.01,
    )
    assert (c.actor_lr, c.critic_lr, c.max_grad_norm, c.hidden, c.activation) == (1e-4, 5e-3, 0.5, (256, 256), "relu")
    assert (c.initial_std, c.final_std, c.learn_std, c.initial_action) == (0.3, 0.05, False, 0.5)
    for config in (c, PrancePPOConfig.tuned(hidden=[5])):
        assert PrancePPOConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_environments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"autoreset_mode=.*SAME_STEP"):
        PrancePPO(PranceVectorEnv(2))
    with pytest.raises(ValueError, match=r"Discrete.*needs a Box"):
        PrancePPO(make_env("CartPole-v1", 2))
    unbounded = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(ValueError, match="finite bounds"):
        PrancePPO(None, spaces=(unbounded, unbounded))
    for other in (DummyVecEnv([lambda: gym.make("Pendulum-v1")]), gym.make("Pendulum-v1")):
        with pytest.raises(ValueError, match=r"takes a Gymnasium VectorEnv.*not (DummyVecEnv|TimeLimit)"):
            PrancePPO(other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too short"):
        PrancePPO(Guess(1), PrancePPOConfig.tuned(n_steps=1))
    with pytest.raises(ValueError, match="seed=-1"):
        PrancePPO(Guess(2), seed=-1)
    with pytest.raises(ValueError, match="needs an environment"):
        PrancePPO(None)
    agent = PrancePPO(Guess(2), QUICK)
    with pytest.raises(ValueError, match=r"(?s)agent is for observations .*\(3,\).*this environment has"):
        agent.set_env(PranceVectorEnv(2, "SAME_STEP"))
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="agent is for observations"):
        PrancePPO.load(tmp_path / "agent", PranceVectorEnv(2, "SAME_STEP"))
    with pytest.raises(ValueError, match=r"no environment.*set_env"):
        PrancePPO.load(tmp_path / "agent").learn(10)


def test_an_id_is_enough() -> None:
    config = PrancePPOConfig.tuned(n_envs=4, n_steps=3, batch_size=12)
    agent = PrancePPO("Pendulum-v1", config).learn(24)
    assert agent.num_timesteps == 24
    agent = PrancePPO("Prance-Digits-v0", config)
    assert isinstance(agent.env, VectorEnv)
    assert isinstance(agent.env.unwrapped, PranceVectorEnv)


def test_divergence_is_an_error() -> None:
    class Broken(Guess):
        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            observation, rewards, *rest = super().step(actions)
            return observation, rewards * np.nan, *rest  # type: ignore[return-value]

    with pytest.raises(ValueError, match=r"diverged.*lower actor_lr"):
        PrancePPO(Broken(16), QUICK).learn(100)
