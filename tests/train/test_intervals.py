"""Intervals, tests and controls: right against formulas and by construction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import settings_for
from numpy.typing import NDArray

from agents import FullAgent, RandomAgent
from prance_env import InferenceEngine
from prance_env.spaces import observation_layout
from train.evaluate.evaluation import Evaluation, evaluate, evaluate_actions, others
from train.evaluate.intervals import bootstrap_interval, describe, difficulty_correlation, share_interval
from train.evaluate.pairs import compare, mcnemar, regret_to_oracle, wilcoxon_p

IMAGES = 60


@pytest.fixture(scope="module")
def random_result(engine: InferenceEngine) -> Evaluation:
    return evaluate(RandomAgent(engine.config, seed=1), settings_for(engine))


def test_the_bootstrap_agrees_with_the_normal_interval_and_its_seed() -> None:
    values = np.random.default_rng(0).exponential(size=(2000, 2)) * [1, 10]
    low, high = bootstrap_interval(values, seed=3, resamples=2000)
    error = values.std(axis=0) / np.sqrt(len(values))
    np.testing.assert_allclose(low, values.mean(0) - 1.96 * error, rtol=0.02)
    np.testing.assert_allclose(high, values.mean(0) + 1.96 * error, rtol=0.02)
    np.testing.assert_array_equal(bootstrap_interval(values, 3, 50), bootstrap_interval(values, 3, 50))
    assert (bootstrap_interval(values, 4, 50) != bootstrap_interval(values, 3, 50)).all()
    narrow = bootstrap_interval(values[:, 0], 3, level=0.5)
    assert low[0] < narrow[0] < narrow[1] < high[0]
    np.testing.assert_array_equal(bootstrap_interval(np.full(7, 0.25)), [0.25, 0.25])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": np.zeros(0)}, "at least one row"),
        ({"values": np.ones(3), "resamples": 0}, "resamples=0"),
        ({"values": np.ones(3), "level": 1.0}, r"level=1\.0"),
    ],
)
def test_a_bootstrap_refuses_what_has_no_interval(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)


def test_a_description_covers_the_whole_and_its_parts(random_result: Evaluation) -> None:
    data = describe(random_result, resamples=200)
    assert {k: data[k] for k in random_result.summary()} == random_result.summary()
    np.testing.assert_allclose(data["patches_after"], random_result.patches.mean(axis=0))
    for part in (data, *data["by_difficulty"].values(), *data["by_class"].values()):
        means = [part["accuracy"], part["macs_fraction"], *part["patches_after"]]
        intervals = [part["accuracy_interval"], part["macs_fraction_interval"], *part["patches_after_interval"]]
        for mean, (low, high) in zip(means, intervals, strict=True):
            assert low - 1e-12 <= mean <= high + 1e-12
    for key, column in (("by_difficulty", random_result.difficulty), ("by_class", random_result.label)):
        assert {int(k): v["n_images"] for k, v in data[key].items()} == {k: (column == k).sum() for k in column}
    chosen = random_result.label == random_result.label[0]
    assert data["by_class"][str(random_result.label[0])]["accuracy"] == random_result.correct[chosen].mean()


def test_an_accuracy_is_uncertain_also_where_all_images_are_right_or_none_is(random_result: Evaluation) -> None:
    # By Wilson's formula, with z = 1.96: n / (n + z ** 2), and for half of them 1/2 -+ z / 2 / sqrt(n + z ** 2).
    expected = {0: [0.0, 1 - 20 / 23.8415], 10: [0.5 - 0.20070, 0.5 + 0.20070], 20: [20 / 23.8415, 1.0]}
    for right, interval in expected.items():
        assert share_interval(np.arange(20) < right) == pytest.approx(interval, abs=1e-4)
    told = describe(replace(random_result, prediction=random_result.label), resamples=10)
    assert told["accuracy_interval"] == pytest.approx([IMAGES / (IMAGES + 3.8415), 1.0], abs=1e-4)


def test_macs_are_correlated_with_difficulty_by_rank(random_result: Evaluation) -> None:
    spent = 10 ** (1 + random_result.difficulty)
    assert difficulty_correlation(replace(random_result, macs=spent)) == pytest.approx(1)
    assert difficulty_correlation(replace(random_result, macs=-spent)) == pytest.approx(-1)
    assert difficulty_correlation(replace(random_result, macs=np.ones(IMAGES, dtype=np.int64))) is None
    assert difficulty_correlation(replace(random_result, difficulty=np.ones(IMAGES, dtype=np.int64))) is None


def test_mcnemar_counts_only_images_on_which_the_agents_differ() -> None:
    first = np.array([True] * 5 + [False] * 95)
    second = np.zeros(100, dtype=bool)
    assert mcnemar(first, second) == pytest.approx(2 * 0.5**5)
    assert mcnemar(first, first) == 1
    shared = np.concatenate([first, np.ones(1000, dtype=bool)]), np.concatenate([second, np.ones(1000, dtype=bool)])
    assert mcnemar(*shared) == mcnemar(first, second)


def test_wilcoxon_sees_a_shift_and_no_difference_in_none() -> None:
    spent = np.arange(40) * 7
    assert wilcoxon_p(spent, spent) == 1
    assert wilcoxon_p(spent, spent + 1 + np.arange(40)) < 1e-6
    assert wilcoxon_p(spent, spent + np.where(np.arange(40) % 2, 1, -1) * (1 + np.arange(40))) > 0.5


def test_a_comparison_has_its_sign_and_refuses_other_images(engine: InferenceEngine, random_result: Evaluation) -> None:
    full = evaluate(FullAgent(engine.config), settings_for(engine))
    found = compare(full, random_result, resamples=200)
    assert found["accuracy"] == pytest.approx(full.correct.mean() - random_result.correct.mean())
    assert found["macs_fraction"] == pytest.approx(1 - random_result.macs_fraction.mean())
    assert found["macs_fraction_p"] < 1e-6
    assert found["only_first_right"] - found["only_second_right"] == pytest.approx(found["accuracy"] * IMAGES)
    assert found["accuracy_interval"][0] <= found["accuracy"] <= found["accuracy_interval"][1]
    back = compare(random_result, full, resamples=200)
    assert back["macs_fraction"] == -found["macs_fraction"]
    assert (back["only_first_right"], back["accuracy_p"]) == (found["only_second_right"], found["accuracy_p"])
    moved = replace(full, index=full.index[::-1])
    with pytest.raises(ValueError, match="different images"):
        compare(full, moved)


def test_regret_has_two_parts_and_is_zero_beside_itself(engine: InferenceEngine, random_result: Evaluation) -> None:
    full = evaluate(FullAgent(engine.config), settings_for(engine))
    found = regret_to_oracle(full, random_result, 0.3, resamples=200)
    assert found["regret"] == pytest.approx(found["accuracy_gap"] + 0.3 * found["macs_gap"])
    assert found["macs_gap"] == pytest.approx(1 - random_result.macs_fraction.mean())
    assert regret_to_oracle(full, full, 0.3)["regret_interval"] == [0, 0]
    with pytest.raises(ValueError, match=r"macs_weight=-1"):
        regret_to_oracle(full, full, -1)


class Looker(RandomAgent):
    """Full size where the class token says so, the smallest elsewhere; keeps what it has seen."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False):  # type: ignore[no-untyped-def]
        self.seen = [*getattr(self, "seen", []), observation]
        token = observation[:, observation_layout(self.config, "cls")["class_token"]]
        sign = np.where(token[:, 0] > np.median(token[:, 0]), 1.0, -1.0)
        return np.repeat(sign[:, None], self.config.space.action_size, axis=1).astype(np.float32), state


def test_shuffled_observations_are_those_of_one_other_image_each(engine: InferenceEngine) -> None:
    settings, plain, shuffled = settings_for(engine), Looker(engine.config), Looker(engine.config)
    seen = evaluate(plain, settings, batch_size=IMAGES)
    other = evaluate(shuffled, settings, batch_size=IMAGES, shuffle_observations=True, seed=2)
    donors = others(IMAGES, 2)
    for expected, given in zip(plain.seen, shuffled.seen, strict=True):
        np.testing.assert_allclose(given, expected[donors], atol=1e-5)
    np.testing.assert_array_equal(other.taken, seen.taken[donors])
    np.testing.assert_array_equal(other.macs, seen.macs[donors])
    np.testing.assert_array_equal(other.index, np.arange(IMAGES))
    assert (other.prediction != seen.prediction).any()


@pytest.mark.parametrize("total", [2, 3, 101])
def test_nobody_is_its_own_other_and_everybody_is_one(total: int) -> None:
    donors = others(total, 0)
    assert (donors != np.arange(total)).all()
    assert sorted(donors) == list(range(total))
    with pytest.raises(ValueError, match="1 image"):
        others(1, 0)


def test_given_actions_are_played_image_by_image(engine: InferenceEngine, random_result: Evaluation) -> None:
    replayed = evaluate_actions((random_result.taken.astype(np.float64) + 1) / 2, settings_for(engine))
    for name, value in vars(random_result).items():
        np.testing.assert_array_equal(getattr(replayed, name), value, err_msg=name)
    with pytest.raises(ValueError, match=r"3 rows of actions for 60 images"):
        evaluate_actions(np.ones((3, 3, 7)), settings_for(engine))


class Counter(FullAgent):
    """Hands out how many decisions it has taken."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False):  # type: ignore[no-untyped-def]
        self.states: list[Any] = [*getattr(self, "states", []), state]
        return super().predict(observation)[0], (0 if state is None else state) + 1


def test_an_agent_with_a_memory_gets_it_back_within_an_episode(engine: InferenceEngine) -> None:
    agent = Counter(engine.config)
    evaluate(agent, settings_for(engine), batch_size=IMAGES // 2)
    assert agent.states == [None, 1, 2, None, 1, 2]


def test_agents_that_know_no_state_can_be_judged(engine: InferenceEngine) -> None:
    class Bare:
        def predict(self, observation: NDArray[np.float32], deterministic: bool) -> tuple[Any, None]:
            return np.ones((len(observation), engine.config.space.action_size), dtype=np.float32), None

    assert (evaluate(Bare(), settings_for(engine)).macs_fraction == 1).all()  # type: ignore[arg-type]
