"""The batched engine: values in, values out, and a cache that nobody notices."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ENV_ID, make_engine, played, unit_actions

from prance_env import InferenceEngine, RewardConfig
from prance_env.episodes import Episodes
from prance_env.images.loading import DIGITS_SCENES, load_dataset
from prance_env.settings import EnvSettings
from prance_env.supernets import checkpoint_folder
from supernet import Supernet, list_supernets, save_pretrained
from supernet.checkpoint import load_config

REWARD = RewardConfig("potential", "mixed", 0.3, 0.1)


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Noise before a random supernet."""
    return make_engine(digits_net)


def fresh(engine: InferenceEngine) -> InferenceEngine:
    """The same engine with an empty cache."""
    return InferenceEngine(engine.net, engine.dataset)


def fields(episodes: Episodes) -> dict[str, Any]:
    """Every array of the episodes and of their state, as numpy."""
    values = {**vars(episodes), **{f"state.{k}": v for k, v in vars(episodes.state).items()}}
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in values.items() if k != "state"}


def assert_equal(a: Episodes, b: Episodes) -> None:
    """Bit for bit."""
    for (name, x), y in zip(fields(a).items(), fields(b).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@torch.inference_mode()
def test_an_episode_starts_where_the_network_begins(engine: InferenceEngine) -> None:
    net, index = engine.net, np.array([9, 3, 3, 60])
    images = engine.dataset.images[torch.from_numpy(index)]
    episodes, state = engine.start(index), net.begin(images)
    for name, value in vars(state).items():
        started = getattr(episodes.state, name)
        assert (started is None) == (value is None), name
        if value is not None:
            np.testing.assert_allclose(started, value, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(episodes.prediction, net(images).argmax(1))
    np.testing.assert_array_equal(episodes.label, engine.dataset.labels[index])
    np.testing.assert_array_equal(episodes.macs, net.macs().item())


def test_what_the_cache_holds_does_not_depend_on_which_images_were_asked_for_together(any_net: Supernet) -> None:
    warm = make_engine(any_net)
    cold = fresh(warm)
    for index in ([7], [3, 7, 5], *([i] for i in range(8, 20))):
        warm.start(np.array(index))
    actions = unit_actions(any_net.space, 20)
    for a, b in zip(played(warm, actions, REWARD), played(cold, actions, REWARD), strict=True):
        assert_equal(a, b)


def test_a_step_leaves_the_episodes_it_was_given_as_they_were(engine: InferenceEngine) -> None:
    actions = unit_actions(engine.config.space, 10)
    given = actions.copy()
    episodes = engine.start(np.arange(10))
    for decision in range(engine.config.space.num_decisions):
        before = copy.deepcopy(fields(episodes))
        following = engine.step(episodes, actions[:, decision], REWARD)
        engine.observe(following, "cls")
        for name, value in fields(episodes).items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        episodes = following
    np.testing.assert_array_equal(actions, given)


def test_episodes_can_be_taken_apart_and_forked_at_any_decision(engine: InferenceEngine) -> None:
    actions = unit_actions(engine.config.space, 10)
    path = played(engine, actions, REWARD)
    lanes = np.array([7, 2, 2, 0])
    for decision in range(engine.config.space.num_decisions):
        some = engine.step(path[decision][lanes], actions[lanes, decision], REWARD)
        expected = path[decision + 1][lanes]
        assert len(some) == len(lanes)
        for name in ("index", "label", "embed_dim", "mlp_ratio", "keep_rate", "macs", "prediction"):
            np.testing.assert_array_equal(getattr(some, name), getattr(expected, name))
        for name in ("reward", "value", "reward_accuracy", "reward_macs", "reward_tokens"):
            np.testing.assert_allclose(getattr(some, name), getattr(expected, name), rtol=0, atol=1e-5)
        np.testing.assert_allclose(engine.observe(some, "cls"), engine.observe(expected, "cls"), rtol=0, atol=1e-4)


def test_an_image_that_does_not_exist_is_refused(engine: InferenceEngine) -> None:
    for bad in (-1, len(engine.dataset)):
        with pytest.raises(IndexError, match=rf"index={bad} .*0\.\.{len(engine.dataset) - 1}"):
            engine.start(np.array([0, bad]))


def test_images_of_another_size_are_refused(engine: InferenceEngine) -> None:
    small = replace(engine.dataset, images=engine.dataset.images[:, :, 1:])
    side = engine.config.img_size
    with pytest.raises(ValueError, match=rf"\(1, {side - 1}, {side}\).*\(1, {side}, {side}\)"):
        InferenceEngine(engine.net, small)


@pytest.mark.slow
def test_environments_with_the_same_arguments_share_one_engine() -> None:
    def settings(**changes: Any) -> EnvSettings:
        return EnvSettings(**{"split": "val", **changes})

    assert settings().engine() is settings(observation="constant", reward=asdict(REWARD)).engine()
    assert settings().engine() is not settings(split="test").engine()
    assert EnvSettings.from_id(f"prance_env:{ENV_ID}", split="val").engine() is settings().engine()
    parameters = list(settings().engine().net.parameters())
    assert not any(p.requires_grad for p in parameters)
    assert not settings().engine().net.training


def test_another_checkpoint_brings_its_own_sizes(digits_net: Supernet, tmp_path: Path) -> None:
    save_pretrained(digits_net, tmp_path)
    assert load_config(checkpoint_folder("digits", str(tmp_path))) == digits_net.config
    net = EnvSettings(checkpoint=str(tmp_path), split="val").engine().net
    for a, b in zip(net.state_dict().values(), digits_net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_missing_supernet_or_checkpoint_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'vit'.*" + ".*".join(list_supernets())):
        checkpoint_folder("vit", None)
    with pytest.raises(ValueError, match="'prance_vit_base' has no bundled weights; pass checkpoint="):
        checkpoint_folder("prance_vit_base", None)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*config\.json.*save_pretrained"):
        load_config(checkpoint_folder("digits", str(tmp_path)))


def test_the_bundled_splits_have_their_sizes_and_unknown_ones_are_refused() -> None:
    dataset = load_dataset("digits", "val")
    config = load_config(checkpoint_folder("digits", None))
    assert len(dataset) == DIGITS_SCENES["val"] == len(dataset.images) == len(dataset.difficulty)
    assert dataset.images.dtype == torch.uint8
    assert tuple(dataset.images.shape[1:]) == (config.in_chans, config.img_size, config.img_size)
    with pytest.raises(ValueError, match=r"'imagenet'.*'digits'"):
        load_dataset("imagenet", "val")
    with pytest.raises(ValueError, match=r"'tset'.*train.*val.*test"):
        load_dataset("digits", "tset")
