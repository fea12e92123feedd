"""What Gymnasium, its wrappers and the trainers around it expect; docs/contracts.md says which test keeps what."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import (
    ClipAction,
    FlattenObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TransformObservation,
    TransformReward,
)
from helpers import ENV_ID

from agents import make_sb3
from prance_env import PranceVectorEnv, make_sb3_env

ROOT = Path(__file__).parent.parent.parent
N, DECISIONS = 3, 3


def test_next_step_spends_one_step_in_four_on_restarts_and_the_other_modes_none() -> None:
    played = {}
    for mode in AutoresetMode:
        envs = PranceVectorEnv(N, mode, split="val", observation="constant")
        envs.reset(seed=0)
        ended = np.zeros(N, dtype=bool)
        played[mode] = 0
        for _ in range(12):
            if mode == AutoresetMode.DISABLED and ended.any():
                envs.reset(options={"reset_mask": ended})
            ignored = ended.sum() if mode == AutoresetMode.NEXT_STEP else 0
            _, rewards, ended, _, _ = envs.step(envs.action_space.sample())
            played[mode] += N - ignored
            assert ignored in (0, N)
            assert (rewards == 0).all() if ignored else (rewards != 0).all()
    steps = 12 * N
    assert played == {
        AutoresetMode.NEXT_STEP: steps * DECISIONS // (DECISIONS + 1),
        AutoresetMode.SAME_STEP: steps,
        AutoresetMode.DISABLED: steps,
    }


def test_the_wrappers_of_cleanrls_continuous_ppo_work_around_it() -> None:
    """As in `ppo_continuous_action.py`, with the argument that Gymnasium 1.0 added to TransformObservation."""

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = gym.make(f"prance_env:{ENV_ID}", split="val")
        env = ClipAction(RecordEpisodeStatistics(FlattenObservation(env)))
        env = NormalizeObservation(env)
        env = TransformObservation(env, lambda obs: np.clip(obs, -10, 10), env.observation_space)
        env = NormalizeReward(env, gamma=0.99)
        return TransformReward(env, lambda reward: float(np.clip(reward, -10, 10)))

    envs = gym.vector.SyncVectorEnv([make, make])
    envs.reset(seed=1)
    lengths = []
    for _ in range(2 * (DECISIONS + 1)):
        observations, rewards, _, truncations, infos = envs.step(envs.action_space.sample())
        assert np.isfinite(observations).all()
        assert np.isfinite(rewards).all()
        assert not truncations.any()
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths == [DECISIONS] * 4


@pytest.mark.parametrize("make", [gym.make, gym.make_vec, make_sb3_env])
def test_torchrls_probe_for_frameskip_meets_a_type_error_that_names_it(make: Any) -> None:
    with pytest.raises(TypeError, match="frameskip"):
        make(ENV_ID, frameskip=1)


@pytest.mark.slow
def test_nothing_is_printed_by_an_environment() -> None:
    program = """
import gymnasium, prance_env
env = gymnasium.make("Prance-Digits-v0", split="val", render_mode="ansi")
env.reset(seed=0); env.step(env.action_space.sample()); env.render(); env.close()
envs = prance_env.make_sb3_env("Prance-Digits-v0", 2, split="val")
envs.reset(); envs.step([envs.action_space.sample()] * 2); envs.close()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_untrained_gaussians_are_narrow_and_lie_in_the_middle_of_the_default_box() -> None:
    envs = make_sb3_env(n_envs=2, split="val")
    assert isinstance(envs.action_space, gym.spaces.Box)
    assert (envs.action_space.low == -1).all()
    assert (envs.action_space.high == 1).all()
    policy: Any = make_sb3("ppo", envs, seed=0).policy
    assert (policy.log_std <= -1).all()


def test_the_native_batch_emits_no_episode_key_and_registers_no_time_limit() -> None:
    """`RecordEpisodeStatistics` refuses the one; the other would be passed to the vector class as an argument."""
    assert gym.spec(ENV_ID).max_episode_steps is None
    assert gym.spec(ENV_ID).additional_wrappers == ()
    envs = gym.make_vec(ENV_ID, 2, autoreset_mode="SAME_STEP", split="val")
    infos = [envs.reset(seed=0)[1], *(envs.step(envs.action_space.sample())[4] for _ in range(DECISIONS))]
    assert not any("episode" in info for info in infos)
    assert "final_info" in infos[-1]


def test_supported_versions_are_those_of_the_documentation() -> None:
    project, page = (ROOT / "pyproject.toml").read_text(), (ROOT / "docs" / "contracts.md").read_text()
    assert '"gymnasium>=1.2"' in project
    assert '"stable-baselines3>=2.7"' in project
    assert 'requires-python = ">=3.10"' in project
    for row in ("Gymnasium 1.2", "Stable-Baselines3 2.7", "Python 3.10"):
        assert row in page


def test_the_oldest_versions_that_are_tried_are_the_oldest_allowed() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements" / "oldest.txt").read_text(), re.MULTILINE))
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)[",]', (ROOT / "pyproject.toml").read_text()))
    assert len(pinned) > 25
    assert {
        name: version for name, version in pinned.items() if not f"{version}.".startswith(f"{allowed[name]}.")
    } == {}
    needed = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("]")[0]
    assert {*re.findall(r'"([\w-]+)>=', needed)} <= {*pinned}


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "contracts.md").read_text()
    named = re.findall(r"`(test_\w+)`", page)
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 30
    assert [name for name in named if f"def {name}(" not in written] == []


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_torchrl_counts_three_decisions_an_episode_in_the_native_batch(mode: str) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs import GymWrapper  # type: ignore[import-not-found,unused-ignore]

    env = GymWrapper(gym.make_vec(ENV_ID, N, autoreset_mode=mode, split="val"))
    data = env.rollout(2 * DECISIONS, break_when_any_done=False)
    assert data["next", "done"][..., 0].tolist() == [[False, False, True] * 2] * N
    assert torch.isfinite(data["next", "reward"]).all()


def test_torchrl_makes_the_single_environment() -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs import GymEnv

    data = GymEnv(f"prance_env:{ENV_ID}", split="val").rollout(10)
    assert data["next", "done"][..., 0].tolist() == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_rllib_counts_three_decisions_an_episode(mode: str) -> None:
    pytest.importorskip("ray.rllib")
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    config = PPOConfig().environment(f"prance_env:{ENV_ID}", env_config={"split": "val"})
    config = config.env_runners(num_env_runners=0, num_envs_per_env_runner=N, gym_env_vectorize_mode=mode)
    runner = SingleAgentEnvRunner(config=config)
    episodes = runner.sample(num_episodes=2 * N, random_actions=True)
    assert [len(episode) for episode in episodes] == [DECISIONS] * len(episodes)
    assert len(episodes) >= 2 * N
    assert all(np.isfinite(episode.get_return()) and episode.is_terminated for episode in episodes)
    runner.stop()
