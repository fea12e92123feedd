"""`token_mode=` and `dtype=`: one checkpoint, other ways of reducing tokens and other precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from noise_envs import IMAGES, chosen_subnets, noise_kwargs, played_envs
from small_nets import small_net

from agents.baselines import RandomAgent
from prance_env import PranceEnv, PranceVectorEnv
from prance_env.engine import InferenceEngine
from prance_env.settings import EnvSettings
from prance_env.wrappers import MultiDiscreteActions
from supernet import from_pretrained
from supernet.config import with_space
from train.evaluate import evaluate
from train.search.static import correct_of_static, evolve_static_front

MODES = ["prune", "prune_fused", "merge", "prune_merge", "tome", "prune_mass", "merge_above"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments for noise before a supernet whose checkpoint says "prune"."""
    return noise_kwargs(small_net("prune"), tmp_path_factory.mktemp("prune"))


def settings_for(kwargs: dict[str, Any], **changes: Any) -> EnvSettings:
    return PranceEnv(**{**kwargs, **changes}).settings


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_is_the_inference_of_the_chosen_subnet_in_that_mode(small: dict[str, Any], mode: str) -> None:
    envs, actions, steps = played_envs(**small, token_mode=mode, reward={"token_weight": 0.25})
    net, dataset = from_pretrained(small["checkpoint"]), envs.lanes.engine.dataset
    net.config = with_space(net.config, token_mode=mode)
    subnets = chosen_subnets(envs.settings, actions)
    observations, _, _, _, infos = steps[-1]
    with torch.inference_mode():
        state = net.forward_features(dataset.fetch(np.arange(IMAGES)), subnets)
        expected = net.forward_head(state).argmax(1)
    np.testing.assert_array_equal(infos["prediction"], expected)
    np.testing.assert_array_equal(infos["num_tokens"], state.num_tokens)
    np.testing.assert_array_equal(infos["macs"], net.macs_to_go(state))
    assert envs.single_action_space.shape == (2 + (2 if mode == "prune_merge" else 1),)
    assert all(envs.single_observation_space.contains(row) for row in observations)
    for decision, step in enumerate(steps):
        rates = subnets.keep_rate[:, decision].reshape(IMAGES, -1).sum(1)
        np.testing.assert_allclose(step[-1]["reward_tokens"], -0.25 * rates)


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_checker_passes_in_every_mode(small: dict[str, Any], mode: str) -> None:
    env = PranceEnv(**small, token_mode=mode)
    check_env(env, skip_render_check=True)
    assert env.settings.config().space.token_mode == mode


def test_modes_give_different_results_and_none_keeps_the_checkpoints(small: dict[str, Any]) -> None:
    observed = {mode: played_envs(**small, token_mode=mode)[2][0][0] for mode in [None, "prune", "merge", "tome"]}
    np.testing.assert_array_equal(observed[None], observed["prune"])
    assert not np.allclose(observed["merge"], observed["prune"])
    assert not np.allclose(observed["merge"], observed["tome"])


def test_settings_share_an_engine_exactly_if_they_mean_the_same_network(small: dict[str, Any]) -> None:
    engine = settings_for(small).engine()
    assert settings_for(small, token_mode="prune").engine() is engine
    for changes in ({"token_mode": "merge"}, {"dtype": "bfloat16"}):
        assert settings_for(small, **changes).engine() is not engine
    assert engine.config.space.token_mode == "prune"


def test_prefixes_on_disk_serve_all_modes_but_those_that_always_sort(small: dict[str, Any], tmp_path: Path) -> None:
    index = np.arange(IMAGES)
    written = settings_for(small, cache_dir=str(tmp_path)).engine()
    written.start(index)
    other = settings_for(small, cache_dir=str(tmp_path), token_mode="prune_merge").engine()
    assert not other.cache.held.any()
    assert other.cache.recall(index).all()
    half = settings_for(small, cache_dir=str(tmp_path), dtype="bfloat16").engine()
    assert not half.cache.recall(index).any()
    sorting = small_net("prune", prance_embed_dim=40)
    InferenceEngine(sorting, written.dataset, cache_dir=tmp_path).start(index)
    sorting_merge = small_net("merge", prance_embed_dim=40)
    assert not InferenceEngine(sorting_merge, written.dataset, cache_dir=tmp_path).cache.recall(index).any()


def test_the_authors_rules_know_their_modes_only(tmp_path: Path) -> None:
    kwargs = noise_kwargs(small_net("prune", prance_embed_dim=40), tmp_path)
    envs, actions, steps = played_envs(**kwargs, token_mode="prune_merge")
    assert actions.shape[-1] == 4
    assert len(np.unique(steps[-1][-1]["num_tokens"])) > 2
    with pytest.raises(ValueError, match=r"'tome'.*authors.*'merge', 'prune', 'prune_merge'\]"):
        PranceEnv(**kwargs, token_mode="tome")
    envs.close()


def test_a_snapshot_of_another_mode_or_precision_is_refused(small: dict[str, Any]) -> None:
    envs = PranceVectorEnv(2, **small, token_mode="merge")
    envs.reset(seed=0)
    for changes, words in (({}, "token_mode='merge' instead of 'prune'"), ({"dtype": "float16"}, "dtype='float32'")):
        with pytest.raises(ValueError, match=words):
            PranceVectorEnv(2, **small, **changes).load_state_dict(envs.state_dict())


def test_pictures_count_the_tokens_left_where_patches_merge(small: dict[str, Any]) -> None:
    frames, lines = {}, {}
    for mode in ("rgb_array", "ansi"):
        env = PranceEnv(**small, token_mode="merge", render_mode=mode)
        env.reset(seed=0, options={"index": 2})
        shown = [env.render()]
        _, _, _, _, info = env.step(-np.ones(env.action_space.shape or (), dtype=np.float32))
        (frames if mode == "rgb_array" else lines)["shown"] = [*shown, env.render()]
    patches = env.settings.config().num_patches
    assert info["num_tokens"] - 1 < patches
    assert f"patches {info['num_tokens'] - 1}/{patches}" in lines["shown"][1]
    bar = (slice(172, 188), slice(-200, None))
    first, last = (frame[bar] for frame in frames["shown"])
    assert (first != last).any()


def test_static_search_varies_both_rates_and_judges_as_the_network(small: dict[str, Any]) -> None:
    engine, index = settings_for(small, token_mode="prune_merge").engine(), np.arange(IMAGES)
    found = evolve_static_front(engine, index, num_subnets=40, seed=0)
    rates = found.actions[:, :, -2:]
    assert (rates[..., 0] != rates[..., 1]).any()
    assert len(np.unique(rates[..., 0])) > 2 < len(np.unique(rates[..., 1]))
    for number in (1, 7, 39):
        subnet = chosen_subnets(settings_for(small, token_mode="prune_merge"), found.actions[number : number + 1])
        with torch.inference_mode():
            right = engine.net(engine.dataset.fetch(index), subnet).argmax(1) == engine.dataset.labels
        np.testing.assert_array_equal(correct_of_static(engine, index, found.actions[number]), right)


def test_evaluation_records_both_rates(small: dict[str, Any]) -> None:
    settings = settings_for(small, token_mode="prune_merge")
    agent = RandomAgent(settings.config(), settings.observation, seed=3)
    result = evaluate(agent, settings)
    again = np.random.default_rng(3).random((2, IMAGES, 4))
    np.testing.assert_allclose(result.actions[:, :, -2:], again.transpose(1, 0, 2)[..., -2:], atol=1e-6)


def test_discrete_actions_have_an_entry_for_each_rate(small: dict[str, Any]) -> None:
    env = MultiDiscreteActions(PranceEnv(**small, token_mode="prune_merge"), keep_levels=5)
    assert env.action_space.shape == (4,)
    env.reset(seed=0)
    tokens = env.step(np.array([1, 2, 4, 0]))[4]["num_tokens"]
    env.reset(seed=0)
    assert env.step(np.array([1, 2, 4, 4]))[4]["num_tokens"] > tokens


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["prune", "merge", "tome"])
def test_half_precision_computes_nearly_the_same_and_shows_float32(
    small: dict[str, Any], dtype: str, mode: str
) -> None:
    envs, _, steps = played_envs(**small, dtype=dtype, token_mode=mode, reward={"accuracy": "prob"})
    net = envs.lanes.engine.net
    assert {p.dtype for p in net.parameters()} == {getattr(torch, dtype)}
    exact = played_envs(**small, token_mode=mode, reward={"accuracy": "prob"})[2]
    first, reference = envs.load_state_dict(envs.state_dict())[0], exact[-1][0]
    for observations in (first, steps[0][0]):
        assert observations.dtype == np.float32
        assert all(envs.single_observation_space.contains(row) for row in observations)
    np.testing.assert_array_equal(first, steps[-1][0])
    assert not np.array_equal(first, reference)
    np.testing.assert_array_equal(steps[-1][-1]["macs"], exact[-1][-1]["macs"])
    difference = np.abs(steps[-1][-1]["reward_accuracy"] - exact[-1][-1]["reward_accuracy"])
    assert np.median(difference) < 0.1
