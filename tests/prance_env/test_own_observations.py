"""Observations of users: what they may be made of, and what happens where they fail."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from helpers import ENV_ID
from torch import Tensor

from agents import AdaptiveViT, FullAgent
from prance_env import EnvSettings, PranceEnv, PranceVectorEnv, register_observation
from prance_env.observations import OBSERVATIONS, ObservationPart, Seen
from supernet import Supernet, save_pretrained

NAME = "of_a_user"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    OBSERVATIONS.remove(NAME)


class Fragile:
    """A registered observation that fails on demand, at one decision."""

    def __init__(self) -> None:
        self.group: int | None = None
        register_observation(NAME, self)

    def __call__(self, seen: Seen) -> Tensor:
        if seen.state.group == self.group:
            raise ValueError("a mistake of mine")
        return torch.zeros(len(seen.state), 1)


def make_envs(mode: AutoresetMode | str, **kwargs: Any) -> PranceVectorEnv:
    envs = gym.make_vec(ENV_ID, 3, autoreset_mode=mode, observation=NAME, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def make_env(**kwargs: Any) -> PranceEnv:
    env = gym.make(ENV_ID, observation=NAME, **kwargs).unwrapped
    assert isinstance(env, PranceEnv)
    return env


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("price", [None, (0.1, 0.5)])
def test_a_step_whose_observation_fails_is_undone_with_what_it_has_drawn(mode: str, price: Any) -> None:
    fragile, rows = Fragile(), []
    for fails in (False, True):
        envs = make_envs(mode, cost_conditioning=price)
        envs.reset(seed=0)
        actions = np.ones(envs.action_space.shape or (), dtype=np.float32)
        for _ in range(envs.config.space.num_decisions - (mode == "SAME_STEP")):
            envs.step(actions)
        if fails:
            fragile.group = envs.config.space.first_decided
            with pytest.raises(ValueError, match="a mistake of mine"):
                envs.step(actions)
            fragile.group = None
        rows.append(envs.step(actions)[4])
    assert (rows[0]["decision"] == 0).all()
    for key in ("index", "decision", *(["macs_weight"] if price else [])):
        np.testing.assert_array_equal(rows[1][key], rows[0][key])


def test_a_reset_of_lanes_whose_observation_fails_is_undone() -> None:
    fragile = Fragile()
    envs, twin = make_envs("DISABLED"), make_envs("DISABLED")
    for e in (envs, twin):
        e.reset(seed=0)
        e.step(np.ones(e.action_space.shape or (), dtype=np.float32))
    fragile.group = envs.config.space.first_decided
    for seed in (None, 7):
        with pytest.raises(ValueError, match="a mistake of mine"):
            envs.reset(seed=seed, options={"reset_mask": [True, False, True]})
    fragile.group = None
    for e in (envs, twin):
        infos = e.step(np.ones(e.action_space.shape or (), dtype=np.float32))[4], e.reset()[1]
        if e is envs:
            found = infos
    for a, b in zip(found, infos, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["decision"], b["decision"])


def test_a_single_environment_whose_observation_fails_is_as_before() -> None:
    fragile, found = Fragile(), []
    for fails in (False, True):
        env, rows = make_env(), []
        rows.append(env.reset(seed=0)[1])
        action = np.ones(env.action_space.shape or (), dtype=np.float32)
        if fails:
            fragile.group = env.settings.config().space.first_decided + 1
            with pytest.raises(ValueError, match="a mistake of mine"):
                env.step(action)
            fragile.group = env.settings.config().space.first_decided
            for seed in (None, 7):
                with pytest.raises(ValueError, match="a mistake of mine"):
                    env.reset(seed=seed)
            fragile.group = None
        rows += [env.step(action)[4], env.reset()[1]]
        found.append([(row["index"], row["decision"]) for row in rows])
    assert found[0] == found[1]


@pytest.mark.parametrize("price", [None, (0.1, 0.5)])
@pytest.mark.parametrize("columns", [0, 2])
def test_a_function_that_gives_another_number_of_entries_is_refused(price: Any, columns: int) -> None:
    register_observation(NAME, lambda seen: torch.zeros(len(seen.state), columns))
    with pytest.raises(ValueError, match=rf"'of_a_user' gave a tensor of shape \(1, {columns}\); expected .*\(1, 1\)"):
        make_env(cost_conditioning=price).reset(seed=0)


def test_a_number_that_is_not_finite_is_said_to_be_of_the_function_that_gave_it() -> None:
    def third(seen: Seen) -> Tensor:
        return torch.tensor([[1.0], [1.0], [0.0]]).log().mul(0)[: len(seen.state)]

    register_observation(NAME, third, beside=("class_token", "decision"))
    envs = make_envs("SAME_STEP")
    with pytest.raises(ValueError, match=r"'of_a_user' is not finite for image 7, .* Mend its func"):
        envs.reset(seed=0, options={"index": [3, 5, 7]})


def test_what_a_function_makes_of_a_supernet_that_overflows_is_not_its_fault(
    digits_net: Supernet, tmp_path: Path
) -> None:
    register_observation(NAME, lambda seen: seen.class_token[0][:, :1] * 0, beside=())
    broken = copy.deepcopy(digits_net)
    broken.pos_embed.data.fill_(3e38)
    save_pretrained(broken, tmp_path)
    with pytest.raises(ValueError, match="numbers of the supernet overflow"):
        make_env(checkpoint=str(tmp_path)).reset(seed=0)


def test_parts_of_users_are_looked_at_as_well() -> None:
    register_observation(NAME, (ObservationPart("mine", lambda seen: torch.zeros(len(seen.state))), "decision"))
    with pytest.raises(ValueError, match=r"'mine' gave a tensor of shape \(3,\); expected .* \(3, 1\)"):
        make_envs("SAME_STEP").reset(seed=0)


def test_a_function_that_reads_mean_keys_is_told_what_to_register() -> None:
    def loudest(seen: Seen) -> Tensor:
        return seen.key_mean.amax(1, keepdim=True)

    register_observation(NAME, loudest)
    with pytest.raises(ValueError, match=r'beside=\("key_mean",\)'):
        make_env().reset(seed=0)
    OBSERVATIONS.remove(NAME)
    register_observation(NAME, loudest, beside=("key_mean",), low=-100, high=100)
    seen = make_env().reset(seed=0)[0]
    assert seen[-1] == seen[:-1].max()


@pytest.mark.parametrize("alone", [True, False], ids=["parts", "function"])
def test_a_deployed_model_keeps_the_mean_keys_that_an_observation_shows(alone: bool) -> None:
    if alone:
        register_observation(NAME, ("key_mean", "decision"))
    else:
        register_observation(NAME, lambda seen: seen.key_mean.amax(1, keepdim=True), beside=("key_mean",), high=100)
    settings = EnvSettings.from_id(ENV_ID, observation=NAME, split="test")
    agent, images = FullAgent(settings.config(), NAME), settings.engine().dataset.fetch(np.arange(4))
    assert len(AdaptiveViT.from_settings(settings, agent)(images)) == 4


def test_a_function_may_stand_alone_and_no_parts_at_all_are_refused() -> None:
    register_observation(NAME, lambda seen: torch.full((len(seen.state), 1), 0.25), beside=())
    assert make_env().reset(seed=0)[0].tolist() == [0.25]
    with pytest.raises(ValueError, match="'of_none' has no parts; pass at least one of"):
        register_observation("of_none", ())
