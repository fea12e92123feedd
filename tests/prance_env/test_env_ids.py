"""The ids of PRANCE's supernets: what they say when something is missing, and that they work when nothing is."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from noise_envs import noise_kwargs
from small_nets import small_net

import prance_env
from prance_env import PranceEnv, PranceVectorEnv, make_sb3_env, register_envs
from prance_env.registration import BRING_YOUR_OWN, ENV_IDS
from prance_env.settings import EnvSettings
from supernet import create_supernet, supernet_config
from train.commands.main import main

IDS = list(BRING_YOUR_OWN)
MAKERS: dict[str, Any] = {
    "make": gym.make,
    "make_vec": gym.make_vec,
    "sb3": make_sb3_env,
    "settings": EnvSettings.from_id,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small checkpoint and images for it."""
    return noise_kwargs(small_net("merge"), tmp_path_factory.mktemp("ids"))


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("given", ["nothing", "checkpoint", "dataset"])
def test_what_is_missing_is_named_with_an_example(small: dict[str, Any], env_id: str, maker: str, given: str) -> None:
    kwargs = {k: v for k, v in small.items() if k == given}
    with pytest.raises(ValueError, match=rf"'{BRING_YOUR_OWN[env_id]}'.*pass ") as caught:
        MAKERS[maker](env_id, **kwargs)
    asked, example = str(caught.value).split("For example: ")
    assert ("checkpoint='FOLDER'" in asked) == (given != "checkpoint")
    assert ("dataset='FOLDER'" in asked) == (given != "dataset")
    assert example.startswith(f"gym.make('{env_id}', checkpoint='")


def test_the_example_is_code_that_names_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="For example") as caught:
        gym.make("Prance-Small-v0")
    seen: dict[str, Any] = {}
    monkeypatch.setattr(gym, "make", lambda env_id, **kwargs: seen.update(kwargs, id=env_id))
    eval(str(caught.value).split("For example: ")[1], {"gym": gym})
    assert seen["id"] == "Prance-Small-v0"
    assert {"checkpoint", "dataset"} <= set(seen)


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_are_those_of_the_published_search_spaces(small: dict[str, Any], env_id: str, tmp_path: Path) -> None:
    config = supernet_config(BRING_YOUR_OWN[env_id])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    env = gym.make(env_id, checkpoint=str(tmp_path), dataset=small["dataset"])
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (7,), np.float32)
    assert env.observation_space.shape == (config.embed_dim + 3 + len(config.space.embed_dims) + 3 + 2,)


@pytest.mark.parametrize("env_id", IDS)
def test_with_both_an_id_is_an_environment_like_any(small: dict[str, Any], env_id: str) -> None:
    env = gym.make(f"prance_env:{env_id}", **small).unwrapped
    assert isinstance(env, PranceEnv)
    check_env(env, skip_render_check=True)
    envs = gym.make_vec(env_id, 2, **small)
    assert isinstance(envs, PranceVectorEnv)
    assert EnvSettings.from_id(env_id, **small).engine() is env.settings.engine()
    observations, _ = envs.reset(seed=4)
    np.testing.assert_allclose(observations[0], env.reset(seed=4)[0], atol=1e-5)


def test_registering_again_changes_nothing_and_completes_what_is_missing() -> None:
    specs = {env_id: gym.spec(env_id) for env_id in ENV_IDS}
    register_envs()
    assert all(gym.spec(env_id) is spec for env_id, spec in specs.items())
    removed = gym.registry.pop("Prance-Small-v0")
    try:
        register_envs()
        assert gym.spec("Prance-Small-v0") == removed
    finally:
        gym.registry["Prance-Small-v0"] = removed


def test_list_shows_every_id_with_spaces_and_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["prance", "list"])
    main()
    lines = capsys.readouterr().out.splitlines()
    rows = {env_id: next(line for line in lines if env_id in line) for env_id in ENV_IDS}
    assert "nothing" in rows["Prance-Digits-v0"]
    for env_id, supernet in BRING_YOUR_OWN.items():
        space = supernet_config(supernet).space
        size = space.embed_dims[-1] + 3 + len(space.embed_dims) + 5
        for word in (f"Box({size},)", "Box(-1, 1, (7,))", supernet, "checkpoint=, dataset="):
            assert word in rows[env_id]
    text = "\n".join(lines)
    full_macs = create_supernet("prance_vit_tiny").macs().item()
    for word in ("prance_vit_tiny", "3+3+3+3", "176 192 216 240", "2 4 6", "11.2", f"{full_macs / 1e6:.0f}"):
        assert word in next(line for line in lines if "176 192" in line)
    for word in (
        "prune_merge (two keep rates)",
        "prune_fused",
        "tome",
        "key_mean",
        "digits, ",
        "hfds/...",
        "random",
        "ppo",
    ):
        assert word in text
    assert "prance_merge" not in text


def test_the_version_is_that_of_the_installed_package() -> None:
    assert prance_env.__version__ == version("prance-env")


@pytest.mark.parametrize(
    "more", [{"max_episode_steps": 2}, {"additional_wrappers": (gym.wrappers.ClipAction.wrapper_spec(),)}]
)
def test_a_time_limit_or_wrappers_are_refused_where_they_would_not_be_applied(more: dict[str, Any]) -> None:
    places = {name: getattr(gym.spec("Prance-Digits-v0"), name) for name in ("entry_point", "vector_entry_point")}
    gym.register("Limited-v0", kwargs={"supernet": "digits"}, **places, **more)
    try:
        for maker in ("sb3", "settings"):
            with pytest.raises(ValueError, match=r"'Limited-v0' has a time limit or wrappers.*make_vec_env"):
                MAKERS[maker]("Limited-v0")
        gym.make("Limited-v0")
    finally:
        gym.registry.pop("Limited-v0")
