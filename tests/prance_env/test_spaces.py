"""Observations and action spaces: what stands where, and that it is right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make_engine, partial_subnet, played, unit_actions
from small_nets import small_net

from prance_env import InferenceEngine, RewardConfig, observation_layout
from prance_env.episodes import Episodes
from prance_env.observations import LOG_NORM_BOUND, list_observations
from prance_env.spaces import action_space, observation_space
from supernet import Supernet, SupernetConfig, list_supernets, supernet_config
from supernet.macs import remaining_macs

BATCH = 12


@pytest.fixture(scope="module")
def engine(any_net: Supernet) -> InferenceEngine:
    """Noise before a random supernet of every kind."""
    return make_engine(any_net, BATCH, key_mean=True)


@pytest.fixture(scope="module")
def path(engine: InferenceEngine) -> list[Episodes]:
    """Random episodes, with all phases."""
    return played(engine, unit_actions(engine.config.space, BATCH), RewardConfig("terminal"))


def part(engine: InferenceEngine, episodes: Episodes, name: str) -> np.ndarray:
    """One named part of the observations."""
    layout = observation_layout(engine.config, "cls")
    return engine.observe(episodes, "cls").numpy()[:, layout[name]]


def active_width(engine: InferenceEngine, episodes: Episodes) -> np.ndarray:
    """Width of the class token: a boundary hands on full width, the last group its own."""
    if episodes.decision == engine.config.space.num_decisions:
        return episodes.embed_dim[:, -1]
    return np.full(len(episodes), engine.config.embed_dim)


@pytest.mark.parametrize("name", list_supernets())
@pytest.mark.parametrize("observation", list_observations())
def test_the_layout_covers_the_vector_without_gap_or_overlap(name: str, observation: str) -> None:
    config = supernet_config(name)
    entries = [i for s in observation_layout(config, observation).values() for i in range(s.start, s.stop)]
    space = observation_space(config, observation)
    assert entries == list(range(*(space.shape or ())))
    assert space.dtype == np.float32
    assert space.is_bounded()


@pytest.mark.parametrize("observation", list_observations())
def test_every_observation_lies_in_its_space(engine: InferenceEngine, path: list[Episodes], observation: str) -> None:
    space = observation_space(engine.config, observation)
    for episodes in path:
        for row in engine.observe(episodes, observation).numpy():
            assert space.contains(row)


def test_what_a_token_mode_costs_beyond_the_full_network_is_not_seen(engine: InferenceEngine) -> None:
    episodes = engine.start(np.arange(BATCH))
    dear = replace(episodes, state=replace(episodes.state, macs=episodes.state.macs * 0 + engine.full_macs + 1000))
    np.testing.assert_array_equal(part(engine, dear, "macs_spent"), 1)


def test_one_class_has_no_entropy() -> None:
    engine = make_engine(small_net("prune", groups=(1, 1), num_classes=1), 4)
    np.testing.assert_array_equal(part(engine, engine.start(np.arange(4)), "entropy"), 0)


def test_smaller_observations_are_parts_of_the_whole(engine: InferenceEngine, path: list[Episodes]) -> None:
    for observation in ("cls", "cls_only", "constant"):
        layout = observation_layout(engine.config, observation)
        for episodes in path:
            rows = engine.observe(episodes, observation).numpy()
            for name, place in layout.items():
                np.testing.assert_array_equal(rows[:, place], part(engine, episodes, name))
    assert list(observation_layout(engine.config, "constant")) == ["decision"]
    names = set(observation_layout(engine.config, "cls"))
    assert names - set(observation_layout(engine.config, "cls_only")) == {"max_prob", "entropy"}


def test_the_class_token_is_layer_normed_over_its_active_width_and_padded_with_zeros(
    engine: InferenceEngine, path: list[Episodes]
) -> None:
    for episodes in path:
        token, tokens = part(engine, episodes, "class_token"), episodes.state.class_token.numpy()
        for row, raw, log_norm, width in zip(
            token, tokens, part(engine, episodes, "log_norm")[:, 0], active_width(engine, episodes), strict=True
        ):
            active = raw[:width].astype(np.float64)
            np.testing.assert_allclose(row[:width].mean(), 0, atol=1e-5)
            np.testing.assert_allclose(row[:width].var(), 1, atol=1e-3)
            np.testing.assert_allclose(row[:width] * active.std() + active.mean(), active, atol=1e-3)
            assert not row[width:].any()
            expected = np.clip(np.log(np.sqrt((active**2).mean())), -LOG_NORM_BOUND, LOG_NORM_BOUND)
            np.testing.assert_allclose(log_norm, expected, atol=1e-5)


@torch.inference_mode()
def test_confidence_is_that_of_the_classifier_on_the_class_token(engine: InferenceEngine, path: list[Episodes]) -> None:
    net = engine.net
    for episodes in path:
        max_prob, entropy = (part(engine, episodes, name)[:, 0] for name in ("max_prob", "entropy"))
        for lane, width in enumerate(active_width(engine, episodes)):
            token = episodes.state.class_token[lane, :width]
            normed = F.layer_norm(token, (width,), net.norm.weight[:width], net.norm.bias[:width], net.norm.eps)
            p = (net.head.weight[:, :width] @ normed + net.head.bias).double().softmax(0)
            np.testing.assert_allclose(max_prob[lane], p.max(), atol=1e-5)
            expected = -(p * p.clamp_min(1e-300).log()).sum() / math.log(net.config.num_classes)
            np.testing.assert_allclose(entropy[lane], expected, atol=1e-5)


def test_one_hots_show_the_last_width_and_the_coming_decision(engine: InferenceEngine, path: list[Episodes]) -> None:
    space = engine.config.space
    for decisions, episodes in enumerate(path):
        last_block = space.blocks(decisions)[-1]
        expected = episodes.embed_dim[:, last_block, None] == np.array(space.embed_dims)
        np.testing.assert_array_equal(part(engine, episodes, "embed_dim"), expected)
        coming = np.arange(space.num_decisions) == decisions
        np.testing.assert_array_equal(part(engine, episodes, "decision"), np.tile(coming, (BATCH, 1)))


def test_patches_left_and_macs_spent_are_those_of_the_inference(engine: InferenceEngine, path: list[Episodes]) -> None:
    net, config = engine.net, engine.config
    for decisions, episodes in enumerate(path):
        left = episodes.state.kept().float().mean(1).numpy()
        np.testing.assert_allclose(part(engine, episodes, "patches_left")[:, 0], left, rtol=1e-6)
        subnet = partial_subnet(config.space, unit_actions(config.space, BATCH), decisions)
        spent = net.macs(subnet).numpy() - remaining_macs(config, decisions + 1, episodes.state.num_tokens, subnet)
        np.testing.assert_allclose(part(engine, episodes, "macs_spent")[:, 0], spent / net.macs().item(), rtol=1e-6)
    assert len(np.unique(part(engine, path[-1], "patches_left"))) > 2
    assert (part(engine, path[-1], "macs_spent")[:, 0] < 1).all()


@pytest.mark.parametrize("changes", [{"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}])
def test_all_patches_are_left_at_the_start_whatever_stands_before_them(changes: dict[str, Any]) -> None:
    engine = make_engine(small_net(groups=(1, 1), **changes), 2)
    assert (part(engine, engine.start(np.arange(2)), "patches_left") == 1).all()


@pytest.mark.parametrize(("normalize_actions", "low"), [(True, -1.0), (False, 0.0)])
def test_the_action_box_has_one_entry_per_choice(any_net: Supernet, normalize_actions: bool, low: float) -> None:
    n = any_net.space.blocks_per_decision
    assert action_space(any_net.space, normalize_actions) == gym.spaces.Box(low, 1.0, (2 * n + 1,), np.float32)


def test_an_unknown_observation_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"'pixels'.*" + ".*".join(list_observations())):
        observation_layout(SupernetConfig(), "pixels")
