"""What torch makes by default elsewhere (`torch.set_default_device("cuda")`) is made where the environment says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ENV_ID, random_net
from image_files import CONFIG, image_folder

from agents import PrancePPO
from prance_env import make_sb3_env
from supernet import SubnetConfig, from_pretrained, save_pretrained
from supernet.extract import load_static, save_static

N = 3
# Has no numbers, so that whatever is made there cannot be computed with.
ELSEWHERE = torch.device("meta")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A checkpoint and images that nobody has opened yet."""
    save_pretrained(random_net(CONFIG), tmp_path / "net")
    return {"checkpoint": str(tmp_path / "net"), "dataset": str(image_folder(tmp_path / "images"))}


def played(make: Callable[..., Any], **kwargs: Any) -> list[Any]:
    """What an environment, opened for this, tells of an episode and the beginning of the next."""
    env = make(ENV_ID, **kwargs)
    rng = np.random.default_rng(0)
    told = [env.reset(seed=0)]
    for _ in range(env.unwrapped.settings.config().space.num_decisions):
        told.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)))
    state = env.unwrapped.state_dict()
    return [told, env.reset(), env.unwrapped.load_state_dict(state)]


def batch(env_id: str, mode: str = "DISABLED", **kwargs: Any) -> Any:
    return gym.make_vec(env_id, N, autoreset_mode=mode, **kwargs)


@pytest.mark.parametrize(
    ("make", "kwargs"),
    [
        (gym.make, {}),
        (batch, {"output": "torch", "cost_conditioning": (0.1, 1)}),
        (batch, {"observation": "key_mean", "reward": {"mode": "terminal"}}),
        (batch, {"token_mode": "merge"}),
        (batch, {"token_mode": "tome"}),
        (batch, {"token_mode": "prune_merge"}),
        (batch, {"token_mode": "merge_above"}),
        (batch, {"token_mode": "semantic_frozen"}),
    ],
)
def test_an_environment_is_opened_and_played_on_its_own_device(
    files: dict[str, Any], make: Callable[..., Any], kwargs: dict[str, Any]
) -> None:
    with ELSEWHERE:
        told = played(make, **files, **kwargs)
    torch.testing.assert_close(told, played(make, **files, **kwargs), rtol=0, atol=0)


def test_sb3s_face_and_an_agent_are_made_on_their_own_device(files: dict[str, Any]) -> None:
    venv = make_sb3_env(n_envs=N, seed=0, **files)
    with ELSEWHERE:
        other = make_sb3_env(n_envs=N, seed=0, **files)
        np.testing.assert_array_equal(other.reset(), venv.reset())
        weights = PrancePPO(batch(ENV_ID, "SAME_STEP", **files), seed=0).policy.state_dict()
    expected = PrancePPO(batch(ENV_ID, "SAME_STEP", **files), seed=0).policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


def test_subnets_are_numbers_on_the_cpu_and_networks_are_loaded_there(files: dict[str, Any], tmp_path: Path) -> None:
    images = torch.zeros(2, 3, CONFIG.img_size, CONFIG.img_size)
    with ELSEWHERE:
        net = from_pretrained(files["checkpoint"])
        space = net.space
        drawn = SubnetConfig.random(space, 2, torch.Generator("cpu").manual_seed(0))
        for subnet in (SubnetConfig.full(space), SubnetConfig.min(space), drawn):
            assert {getattr(subnet, name).device.type for name in vars(subnet)} == {"cpu"}
            again = SubnetConfig.from_json(SubnetConfig.from_actions(space, subnet.to_actions(space)).to_json())
            assert torch.equal(again.embed_dim, subnet.embed_dim)
        static = net.extract(drawn[0])
        save_static(static, tmp_path / "static")
        assert torch.equal(load_static(tmp_path / "static")(images), static(images))
    expected = SubnetConfig.random(space, 2, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.keep_rate, expected.keep_rate)
