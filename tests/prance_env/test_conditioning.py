"""Cost conditioning: prices that are drawn, shown, paid and chosen."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from helpers import ENV_ID, INFO_KEYS, transcript

from agents.baselines import FullAgent
from prance_env import EnvSettings, PranceVectorEnv, make_sb3_env, observation_layout
from train.evaluate import evaluate
from train.play import play

LOW, HIGH = 0.02, 0.5
N = 5


def make_envs(mode: str = "SAME_STEP", num_envs: int = N, **kwargs: Any) -> PranceVectorEnv:
    kwargs = {"cost_conditioning": (LOW, HIGH), **kwargs}
    envs = gym.make_vec(ENV_ID, num_envs, autoreset_mode=mode, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def random_actions(envs: PranceVectorEnv, steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, *(envs.action_space.shape or ()))).astype(np.float32)


def test_prices_are_drawn_log_uniformly_after_the_image_from_the_lanes_generator() -> None:
    envs = make_envs(num_envs=3)
    total = len(envs.settings.engine().dataset)
    for seed in (4, None):
        infos = envs.reset(seed=seed)[1]
        if seed is not None:
            generators = [seeding.np_random(seed + lane)[0] for lane in range(3)]
        for lane, generator in enumerate(generators):
            assert infos["index"][lane] == generator.integers(total)
            assert infos["macs_weight"][lane] == pytest.approx(LOW * (HIGH / LOW) ** generator.random())
    many = make_envs(num_envs=600).reset(seed=0)[1]["macs_weight"]
    assert LOW <= many.min() < 1.1 * LOW
    assert 0.9 * HIGH < many.max() <= HIGH
    assert abs((many < np.sqrt(LOW * HIGH)).mean() - 0.5) < 0.06


def test_the_price_is_paid_and_shown_as_the_last_entry() -> None:
    envs = make_envs("DISABLED", reward={"macs_weight": 9.0, "token_weight": 0.1})
    layout = observation_layout(envs.config, "cls", cost_conditioning=True)
    assert list(layout)[-1] == "macs_weight"
    observations, infos = envs.reset(seed=0)
    prices = infos["macs_weight"]
    assert len(set(prices)) == N
    for actions in random_actions(envs, envs.config.space.num_decisions):
        shown = observations[:, layout["macs_weight"]][:, 0]
        assert observations.shape[1] == layout["macs_weight"].stop
        np.testing.assert_allclose(shown, np.log(prices / LOW) / np.log(HIGH / LOW), atol=1e-6)
        observations, rewards, _, _, infos = envs.step(actions)
        np.testing.assert_array_equal(infos["macs_weight"], prices)
        np.testing.assert_allclose(infos["reward_macs"], -prices * infos["macs_fraction"])
        np.testing.assert_allclose(
            rewards, infos["reward_accuracy"] + infos["reward_macs"] + infos["reward_tokens"], atol=1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_lanes_are_single_environments_with_seed_plus_lane(mode: str) -> None:
    envs = make_envs(mode)
    singles = [gym.make(ENV_ID, cost_conditioning=(LOW, HIGH)) for _ in range(N)]
    observations, infos = envs.reset(seed=11)
    rows = [env.reset(seed=11 + lane) for lane, env in enumerate(singles)]
    over = [False] * N
    for actions in [None, *random_actions(envs, 9)]:
        if actions is not None:
            observations, _, terminations, _, infos = envs.step(actions)
            for lane, env in enumerate(singles):
                if mode == "NEXT_STEP" and over[lane]:
                    rows[lane], over[lane] = env.reset(), False
                    continue
                obs, _, over[lane], _, info = env.step(actions[lane])
                rows[lane] = (obs, info)
                assert over[lane] == terminations[lane]
                if mode == "SAME_STEP" and over[lane]:
                    rows[lane] = env.reset()
        for lane, (obs, info) in enumerate(rows):
            np.testing.assert_allclose(observations[lane], obs, atol=1e-5)
            assert infos["macs_weight"][lane] == info["macs_weight"]
            assert infos["index"][lane] == info["index"]


def test_without_conditioning_nothing_is_drawn_shown_or_told_in_addition() -> None:
    plain, conditioned = gym.make(ENV_ID), gym.make(ENV_ID, cost_conditioning=(LOW, HIGH))
    obs, info = plain.reset(seed=3)
    shown, told = conditioned.reset(seed=3)
    assert list(info) == INFO_KEYS
    assert list(told) == [*INFO_KEYS, "macs_weight"]
    np.testing.assert_array_equal(shown[:-1], obs)
    generator = seeding.np_random(3)[0]
    total = len(EnvSettings.from_id(ENV_ID).engine().dataset)
    assert [info["index"], plain.reset()[1]["index"]] == [generator.integers(total) for _ in range(2)]


def test_a_reset_can_choose_prices_without_disturbing_the_images() -> None:
    envs, drawn = make_envs(), make_envs()
    drawn.reset(seed=0)
    prices = np.linspace(LOW, HIGH, N)
    for chosen in (0.1, prices):
        observations, infos = envs.reset(seed=0, options={"macs_weight": chosen})
        np.testing.assert_array_equal(infos["macs_weight"], np.broadcast_to(chosen, N))
    np.testing.assert_allclose(observations[[0, -1], -1], [0, 1], atol=1e-6)
    mask = np.arange(N) == 2
    _, infos = envs.reset(options={"macs_weight": HIGH, "reset_mask": mask})
    np.testing.assert_array_equal(infos["macs_weight"], np.where(mask, HIGH, prices))
    single = gym.make(ENV_ID, cost_conditioning=(LOW, HIGH))
    assert single.reset(seed=0, options={"macs_weight": 0.3})[1]["macs_weight"] == 0.3
    assert single.reset(seed=0)[1]["macs_weight"] != 0.3


def test_sb3_chooses_prices_through_options_or_the_arguments() -> None:
    venv = make_sb3_env(n_envs=2, seed=0, cost_conditioning=(LOW, HIGH))
    venv.set_options({"macs_weight": HIGH})
    assert (np.asarray(venv.reset())[:, -1] == 1).all()
    assert (np.asarray(venv.reset())[:, -1] < 1).all()
    fixed = make_sb3_env(n_envs=2, seed=0, cost_conditioning=(LOW, HIGH, LOW))
    for _ in range(2):
        assert (np.asarray(fixed.reset())[:, -1] == 0).all()


@pytest.mark.parametrize("weight", [0.0, LOW / 2, HIGH * 1.01, float("nan"), "dear", [0.1, 0.2]])
def test_a_price_outside_the_range_is_refused_and_the_episode_stays(weight: Any) -> None:
    envs, untouched = make_envs(), make_envs()
    envs.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match="macs_weight="):
        envs.reset(seed=5, options={"macs_weight": weight})
    np.testing.assert_array_equal(envs.reset()[0], untouched.reset()[0])


def test_a_price_for_an_unconditioned_environment_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"'macs_weight'.*\['index', 'reset_mask'\].*cost_conditioning"):
        make_envs(cost_conditioning=None).reset(options={"macs_weight": 0.1})


@pytest.mark.parametrize(
    "bad",
    [(0, 1), (0.5, 0.1), (0.1,), (0.1, 0.2, 0.3), (0.1, 0.2, 0.15, 0.1), "ab", 0.1, (0.1, float("inf")), (None, 1)],
)
def test_a_bad_range_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"cost_conditioning=|macs_weight="):
        make_envs(cost_conditioning=bad)


@pytest.mark.slow
@pytest.mark.parametrize("observation", ["cls", "cls_only", "constant"])
def test_gymnasiums_checker_has_nothing_to_say(observation: str) -> None:
    check_env(gym.make(ENV_ID, cost_conditioning=(LOW, HIGH), observation=observation).unwrapped)


def test_the_spec_stays_json_and_rebuilds_the_environment() -> None:
    env = gym.make(ENV_ID, cost_conditioning=(LOW, HIGH), reward={"preset": "paper"})
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"]["cost_conditioning"] == [LOW, HIGH]
    assert transcript(gym.make(EnvSpec.from_json(text)), seed=4) == transcript(env, seed=4)


def test_an_agent_is_evaluated_at_the_price_that_was_chosen() -> None:
    settings = EnvSettings.from_id(ENV_ID, split="val", cost_conditioning=(LOW, HIGH, HIGH))
    config = settings.config()

    class Spy(FullAgent):
        """Notes the prices it is shown."""

        seen: set[float] = set()  # noqa: RUF012

        def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
            self.seen |= set(observation[:, -1].tolist())
            return np.ones((len(observation), config.space.action_size)), None

    play(Spy(config, "cls", True), settings, settings.engine(), np.arange(8))
    assert Spy.seen == {1.0}
    with pytest.raises(ValueError, match=r"one price.*fixed"):
        evaluate(Spy(config, "cls", True), EnvSettings.from_id(ENV_ID, split="val", cost_conditioning=(LOW, HIGH)))
