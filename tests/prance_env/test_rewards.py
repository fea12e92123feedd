"""Rewards against the definition, computed anew from the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import make_engine, partial_subnet, played, unit_actions

from prance_env import InferenceEngine, RewardConfig
from prance_env.episodes import Episodes
from prance_env.rewards.config import ACCURACIES, MODES, accuracy_term
from supernet import Supernet

BATCH = 40
ACTIONS_SEED = 3


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Noise before a random supernet."""
    return make_engine(digits_net)


@torch.inference_mode()
def value_by_definition(engine: InferenceEngine, decisions: int, reward: RewardConfig) -> dict[str, np.ndarray]:
    """R_t and its terms: every image through the network from the start, decided so far, full afterwards."""
    net, images, labels = engine.net, engine.dataset.images[:BATCH], engine.dataset.labels[:BATCH]
    subnet = partial_subnet(net.space, unit_actions(net.space, BATCH, ACTIONS_SEED), decisions)
    logits, full_logits = net(images, subnet), net(images)
    rows = torch.arange(BATCH)
    p, p_full = (x.double().softmax(1)[rows, labels].numpy() for x in (logits, full_logits))
    right, full_right = ((x.argmax(1) == labels).numpy() for x in (logits, full_logits))
    accuracy = []
    for image in range(BATCH):
        agrees = 0.0 if full_right[image] and not right[image] else 1.0
        not_worse = min(1.0, 1.0 + p[image] - p_full[image])
        accuracy.append(
            {
                "agreement": agrees,
                "top1": float(right[image]),
                "prob": p[image],
                "mixed": agrees / 2 + not_worse / 2,
            }[reward.accuracy]
        )
    keep = subnet.keep_rate.numpy()
    kept = keep[:, decisions - 1] if reward.mode == "result_to_go" else keep.mean(1)
    macs = net.macs(subnet).numpy() / net.macs().item()
    terms = {
        "reward_accuracy": np.array(accuracy),
        "reward_macs": -reward.macs_weight * macs,
        "reward_tokens": -reward.token_weight * kept,
    }
    return terms | {"value": np.sum(list(terms.values()), axis=0)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_every_reward_equals_its_definition(engine: InferenceEngine, mode: str, accuracy: str) -> None:
    reward = RewardConfig(mode, accuracy, macs_weight=0.7, token_weight=0.3)
    path = played(engine, unit_actions(engine.config.space, BATCH, ACTIONS_SEED), reward)
    before: np.ndarray = np.zeros(BATCH)
    for decisions, episodes in enumerate(path[1:], start=1):
        expected = value_by_definition(engine, decisions, reward)
        paid = mode != "terminal" or episodes is path[-1]
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(episodes, name), values * paid, rtol=0, atol=1e-5)
        np.testing.assert_allclose(episodes.reward, expected["value"] * paid - before, rtol=0, atol=1e-5)
        if mode == "potential":
            before = expected["value"]
    assert 0 < path[-1].success.mean() < 1
    assert not path[0].reward.any()


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_potential_rewards_of_an_episode_sum_to_the_terminal_reward(engine: InferenceEngine, accuracy: str) -> None:
    def rewards(mode: str) -> list[Episodes]:
        reward = RewardConfig(mode, accuracy, macs_weight=0.4, token_weight=0.2)
        return played(engine, unit_actions(engine.config.space, BATCH), reward)

    potential, terminal = rewards("potential"), rewards("terminal")
    np.testing.assert_allclose(sum(e.reward for e in potential), terminal[-1].reward, rtol=0, atol=1e-12)
    assert not np.concatenate([e.reward for e in terminal[:-1]]).any()


def test_a_terminal_reward_says_nothing_about_predictions_before_the_end(engine: InferenceEngine) -> None:
    path = played(engine, unit_actions(engine.config.space, 8), RewardConfig("terminal"))
    assert all((e.prediction == -1).all() and not e.success.any() for e in path[1:-1])
    assert (path[-1].prediction >= 0).all()


def test_accuracy_terms_of_a_table_worked_out_by_hand() -> None:
    correct, full_correct = np.array([True, True, False, False]), np.array([True, False, True, False])
    prob, full_prob = np.array([0.9, 0.6, 0.2, 0.3]), np.array([0.8, 0.4, 0.7, 0.5])
    table: dict[str, list[float]] = {
        "agreement": [1, 1, 0, 1],
        "top1": [1, 1, 0, 0],
        "prob": [0.9, 0.6, 0.2, 0.3],
        "mixed": [1, 1, 0.25, 0.9],
    }
    for kind, expected in table.items():
        term = accuracy_term(kind, correct, full_correct, prob, full_prob)
        assert term.dtype == np.float64
        np.testing.assert_allclose(term, expected)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"mode": "dense"}, ["mode='dense'", *MODES]),
        ({"accuracy": "f1"}, ["accuracy='f1'", *ACCURACIES]),
        ({"macs_weight": -0.1}, ["macs_weight=-0.1", ">= 0"]),
        ({"macs_weight": float("nan")}, ["macs_weight=nan", "finite"]),
        ({"token_weight": float("inf")}, ["token_weight=inf", "finite"]),
        ({"token_weight": "cheap"}, ["token_weight='cheap'", "number"]),
        ({"weight": 1}, ["weight", "macs_weight", "token_weight"]),
        ([("mode", "terminal")], ["dict", "mode"]),
    ],
    ids=str,
)
def test_a_bad_reward_configuration_is_refused_with_what_is_allowed(data: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        RewardConfig.from_dict(data)
    assert [w for w in words if w not in str(caught.value)] == []


def test_no_configuration_is_the_default_one() -> None:
    assert RewardConfig.from_dict(None) == RewardConfig.from_dict({}) == RewardConfig()
