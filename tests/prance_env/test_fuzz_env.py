"""Anything a caller may do, in any order: a documented error that changes nothing, or a valid transition.

Every environment has a twin that only sees the valid calls. After each call the twins must stand at the same place, so
a call that was refused has left no trace, and one that was not has done exactly what its valid form does.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import Error, ResetNeeded
from gymnasium.vector import AutoresetMode
from helpers import ENV_ID
from hypothesis import given, settings
from hypothesis import strategies as st

from prance_env import PranceEnv, PranceVectorEnv

N = 3
DOCUMENTED = (ValueError, TypeError, IndexError, Error)
RANGE = (0.05, 0.5)
DRIVERS, CALLS = 3, 500

pytestmark = pytest.mark.filterwarnings("error", "default::ResourceWarning")


@pytest.fixture(scope="module")
def kwargs(tiny: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the environments: the network is tiny, as the calls are many."""
    return {"observation": "constant", "split": "val", "cost_conditioning": RANGE, **tiny}


def vector(mode: AutoresetMode, kwargs: dict[str, Any]) -> PranceVectorEnv:
    envs = gym.make_vec(ENV_ID, N, autoreset_mode=mode, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


class Driver:
    """One environment under random calls, beside its twin; knows what must be refused.

    Args:
        mode: Autoreset mode; None is the single environment.
        seed: Seed of the calls.
        kwargs: Arguments of the environments.
    """

    def __init__(self, mode: AutoresetMode | None, seed: int, kwargs: dict[str, Any]) -> None:
        self.mode, self.rng = mode, np.random.default_rng(seed)
        if mode is None:
            self.env, self.twin = (gym.make(ENV_ID, **kwargs).unwrapped for _ in range(2))
        else:
            self.env, self.twin = vector(mode, kwargs), vector(mode, kwargs)
        self.shape: tuple[int, ...] = () if mode is None else (N,)
        self.box = self.env.action_space
        self.total = len(self.env.settings.engine().dataset)  # type: ignore[union-attr]
        self.decisions: np.ndarray | None = None  # taken in every lane; None before the first reset
        self.refused = self.accepted = 0

    # ---- what is called ------------------------------------------------------------------------------------------

    def action(self) -> tuple[Any, bool]:
        """An action of some kind, and whether it is one."""
        shape = self.box.shape or ()
        good = self.rng.uniform(-1.5, 1.5, shape).astype(np.float32)
        place = tuple(self.rng.integers(n) for n in shape)
        kind = self.rng.integers(14)
        if kind < 5:
            return good, True
        if kind == 5:
            good[place] = self.rng.choice([np.inf, -np.inf, 1e38])
            return good, True
        if kind == 6:
            return good.astype(self.rng.choice([np.float64, np.float16])), True
        if kind == 7:
            return (torch.from_numpy(good) if self.rng.random() < 0.5 else good.tolist()), True
        if kind == 8:
            return self.rng.integers(-2, 3, shape), True
        if kind == 9:
            good[place] = np.nan
            # The actions of lanes that have ended are ignored, in the mode in which they can be.
            ignored = self.mode is not None and self.decisions is not None and self.decisions[place[0]] == self.length
            return good, bool(ignored)
        wrong: list[Any] = [
            good[..., :-1],
            good[None],
            np.zeros(0),
            None,
            "left",
            {"a": 1},
            good.astype(complex),
            good > 0,
            good.astype(object),
            np.array(0.5),
            [[0.1], [0.2, 0.3]],
            float("nan"),
        ]
        return wrong[self.rng.integers(len(wrong))], False

    def reset_arguments(self) -> tuple[dict[str, Any], bool, np.ndarray]:
        """Arguments of reset, whether they are valid, and which lanes they reset."""
        arguments: dict[str, Any] = {}
        valid, mask = True, np.ones(self.shape, dtype=bool)
        options: dict[str, Any] = {}

        def pick(good: list[Any], bad: list[Any]) -> Any:
            nonlocal valid
            if self.rng.random() < 0.75:
                return good[self.rng.integers(len(good))]
            valid = False
            return bad[self.rng.integers(len(bad))]

        number = int(self.rng.integers(1000))
        if self.decisions is None:
            arguments["seed"] = number  # or the twins would begin at different places
        elif self.rng.random() < 0.4:
            good: list[Any] = [None, number] if self.mode is None else [None, number, [number, None, 7], (1, 2, number)]
            bad: list[Any] = [-1, 1.5, "seed", [1] * (N + 1), {}, [-4] * N, [0.5] * N]
            arguments["seed"] = pick(good, bad)
        if self.rng.random() < 0.4:
            index = self.rng.integers(0, self.total, self.shape)
            far = [np.full(self.shape, self.total), np.full(self.shape, -1), np.full(self.shape, 2**62)]
            bad = [*far, index + 0.5, np.append(index, 1), index[..., None], "3", [[1], [2, 3]], index.astype(bool), {}]
            options["index"] = pick([index, index.tolist(), index.astype(np.int32), None], bad)
        if self.rng.random() < 0.4:
            price = self.rng.uniform(*RANGE, self.shape)
            bad = [0, -1, math.nan, math.inf, "cheap", np.ones(N + 1), RANGE[1] * 2, [[1], [2, 3]], {}]
            options["macs_weight"] = pick([price, float(price.flat[0]), RANGE[0], RANGE[1], None], bad)
        if self.mode is not None and self.rng.random() < 0.5:
            some = self.rng.random(N) < 0.5
            some[self.rng.integers(N)] = True
            zeros = np.zeros(N, dtype=bool)
            bad = [zeros, some.astype(int), some.astype(int).tolist(), np.append(some, True), some[None], "all", 3]
            good = [some, some.tolist(), None]
            options["reset_mask"] = pick(good, bad)
            mask = mask if options["reset_mask"] is None or any(options["reset_mask"] is b for b in bad) else some
        if self.rng.random() < 0.05:
            options["indx"], valid = 3, False
        if self.decisions is None and not mask.all():
            valid = False
        arguments["options"] = options or None
        if self.rng.random() < 0.03:
            arguments["options"], valid, mask = [1, 2], False, np.ones(self.shape, dtype=bool)
        return arguments, valid, mask

    # ---- what must follow ----------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Decisions of an episode."""
        return int(self.env.settings.config().space.num_decisions)  # type: ignore[union-attr]

    def call(self) -> None:
        """One random call to the environment and, if it is valid, to the twin."""
        if self.rng.random() < 0.35:
            arguments, valid, mask = self.reset_arguments()
            result = self.attempt("reset", valid, **arguments)
            if result is None:
                return
            self.check(result[0], result[1])
            self.decisions = np.where(mask, 0, 0 if self.decisions is None else self.decisions)
            np.testing.assert_array_equal(result[1]["decision"], self.decisions)
            return
        action, valid = self.action()
        before = self.decisions
        over = before is not None and (before == self.length).any()
        if before is None or (self.mode in (None, AutoresetMode.DISABLED) and over):
            valid = False
        result = self.attempt("step", valid, action)
        if result is None or before is None:
            return
        self.check(result[0], result[4])
        self.decisions = np.where(before == self.length, 0, before + 1)  # NEXT_STEP restarts what had ended
        np.testing.assert_array_equal(result[2], self.decisions == self.length)
        if self.mode == AutoresetMode.SAME_STEP:
            self.decisions = np.where(self.decisions == self.length, 0, self.decisions)
        np.testing.assert_array_equal(result[4]["decision"], self.decisions)
        assert np.isfinite(result[1]).all()
        assert not np.any(result[3])

    def attempt(self, method: str, valid: bool, *args: Any, **kwargs: Any) -> Any:
        """The result, or None if the call was refused as it must be."""
        if valid:
            result = getattr(self.env, method)(*args, **kwargs)
            expected = getattr(self.twin, method)(*args, **kwargs)
            np.testing.assert_array_equal(result[0], expected[0])
            np.testing.assert_array_equal(result[-1]["index"], expected[-1]["index"])
            np.testing.assert_array_equal(result[-1]["macs"], expected[-1]["macs"])
            np.testing.assert_array_equal(result[-1]["macs_weight"], expected[-1]["macs_weight"])
            self.accepted += 1
            return result
        with pytest.raises(DOCUMENTED) as caught:
            getattr(self.env, method)(*args, **kwargs)
        assert len(str(caught.value)) > 15
        assert method != "step" or self.decisions is not None or isinstance(caught.value, ValueError | ResetNeeded)
        self.refused += 1
        return None

    def check(self, observations: Any, infos: dict[str, Any]) -> None:
        """Observations lie in their space and infos have no gaps."""
        space = self.env.observation_space
        assert space.contains(observations)
        assert RANGE[0] <= np.min(infos["macs_weight"]) <= np.max(infos["macs_weight"]) <= RANGE[1]
        assert 0 <= np.min(infos["index"]) <= np.max(infos["index"]) < self.total


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_random_calls_are_refused_without_a_trace_or_do_what_they_should(
    mode: AutoresetMode | None, kwargs: dict[str, Any]
) -> None:
    driver = Driver(mode, 0, kwargs)
    for _ in range(250):
        driver.call()
    assert driver.refused > 50
    assert driver.accepted > 50


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_many_random_calls(mode: AutoresetMode | None, kwargs: dict[str, Any]) -> None:
    for seed in range(1, DRIVERS + 1):
        driver = Driver(mode, seed, kwargs)
        for _ in range(CALLS):
            driver.call()
        assert min(driver.refused, driver.accepted) > 100


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.floats(width=32), st.integers(-3, 3), st.none()), max_size=8),
    st.dictionaries(st.sampled_from(["index", "macs_weight", "reset_mask", "x"]), st.integers(-2, 9), max_size=3),
    st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint64, bool, complex, object]).flatmap(
        lambda dtype: st.lists(st.integers(0, 4), max_size=3).map(lambda shape: np.ones(shape, dtype=dtype))
    ),
)


@pytest.fixture(scope="module")
def environments(kwargs: dict[str, Any]) -> list[Any]:
    """A batch and a single one."""
    return [vector(AutoresetMode.NEXT_STEP, kwargs), PranceEnv(**kwargs)]


@pytest.mark.slow
@settings(max_examples=300)
@given(
    values=st.lists(
        st.tuples(st.sampled_from(["step", "seed", "options", "index", "macs_weight"]), ANYTHING), max_size=6
    )
)
def test_whatever_hypothesis_thinks_of_is_refused_or_valid(
    environments: list[Any], values: list[tuple[str, Any]]
) -> None:
    for env in environments:
        env.reset(seed=0)
        for name, value in values:
            try:
                if name == "step":
                    observation = env.step(value)[0]
                elif name in ("seed", "options"):
                    observation = env.reset(**{name: value})[0]
                else:
                    observation = env.reset(options={name: value})[0]
            except DOCUMENTED:
                continue
            assert env.observation_space.contains(observation)
        first = env.reset(seed=1)[0]
        fresh = env.reset(seed=1)[0]
        np.testing.assert_array_equal(first, fresh)
