"""The generators of a batch: one a lane, for whoever asks, and for as long as the batch is used."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from helpers import ENV_ID

from prance_env import PranceVectorEnv

N = 5


def test_generators_and_seeds_are_those_that_the_lanes_draw_from() -> None:
    both: Any = PranceVectorEnv(N), gym.make_vec(ENV_ID, N, vectorization_mode="sync")
    first = np.arange(N) == 0
    for kwargs in (
        {"seed": 7},
        {"seed": [3, None, 5, None, None], "options": {"reset_mask": first}},
        {"seed": None},
    ):
        infos, expected = (e.reset(**copy.deepcopy(kwargs))[1] for e in both)
        np.testing.assert_array_equal(infos["index"][infos["_index"]], expected["index"][expected["_index"]])
    native, single = both
    assert native.np_random_seed == (3, 8, 9, 10, 11)
    assert native.np_random_seed[1:] == single.np_random_seed[1:]
    for generator, other in zip(native.np_random, single.np_random, strict=True):
        assert generator.bit_generator.state == other.bit_generator.state
    state = native.state_dict()
    native.load_state_dict(state)
    assert native.np_random_seed == (-1,) * N


def test_what_is_drawn_from_a_generator_before_the_first_reset_counts() -> None:
    envs, twin = PranceVectorEnv(N), PranceVectorEnv(N)
    for ours, theirs in zip(envs.np_random, twin.np_random, strict=True):
        ours.bit_generator.state = theirs.bit_generator.state
    assert envs.np_random_seed == (-1,) * N
    np.testing.assert_array_equal(envs.reset()[1]["index"], twin.reset()[1]["index"])


@pytest.mark.parametrize("begun", [False, True])
def test_generators_can_be_put_in(begun: bool) -> None:
    envs, twin = PranceVectorEnv(N), PranceVectorEnv(N)
    if begun:
        envs.reset(seed=3)
    twin.reset(seed=0)
    twin.reset()
    envs.np_random = [np.random.default_rng() for _ in range(N)]
    for ours, theirs in zip(envs.np_random, twin.np_random, strict=True):
        ours.bit_generator.state = theirs.bit_generator.state
    assert envs.np_random_seed == (-1,) * N
    np.testing.assert_array_equal(envs.reset()[1]["index"], twin.reset()[1]["index"])
    for wrong in (np.random.default_rng(), [np.random.default_rng()], [0] * N):
        with pytest.raises(ValueError, match=f"np_random=.* must be {N} numpy.random.Generator, one per environment"):
            envs.np_random = wrong


def test_a_closed_batch_that_is_reset_goes_on_with_its_generators_and_can_be_closed_again() -> None:
    envs, lasting = PranceVectorEnv(N), PranceVectorEnv(N)
    for e in (envs, lasting):
        e.reset(seed=0)
    state = envs.state_dict()
    envs.close()
    np.testing.assert_array_equal(envs.reset()[1]["index"], lasting.reset()[1]["index"])
    for begin in (lambda: envs.reset(seed=0), lambda: envs.load_state_dict(state)):
        begin()
        assert not envs.closed
        envs.close()
        assert envs.closed
        with pytest.raises(ResetNeeded, match=r"reset\(\)"):
            envs.step(envs.action_space.sample())
