"""The observation of PRANCE's authors, and their selector at work in an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise_envs import IMAGES, noise_kwargs, played_envs
from small_nets import small_net
from torch import Tensor

from agents import load_prance_selector
from prance_env import PranceEnv, PranceVectorEnv
from prance_env.engine import InferenceEngine
from prance_env.observations import KEY_MEAN_BOUND
from supernet import GroupChoice, SearchSpace, Supernet, load_prance_checkpoint
from train.evaluate import evaluate
from train.policies.load_agent import load_agent

FIXTURES = Path(__file__).parent.parent / "fixtures"
SPACE = SearchSpace((3, 3, 3, 3), (88, 104, 120, 132), (1, 2, 3), (2,))
TOKENS = 65


def authors_net(token_mode: str = "prune") -> Supernet:
    """A small meta-network of the authors."""
    weights = {k: torch.from_numpy(v) for k, v in np.load(FIXTURES / "weights_small.npz").items()}
    return load_prance_checkpoint(weights, SPACE, token_mode=token_mode).requires_grad_(False)


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments for an environment over it, as the authors' selector needs them."""
    kwargs = noise_kwargs(authors_net(), tmp_path_factory.mktemp("authors"))
    return {**kwargs, "observation": "key_mean", "supernet": "prance_vit_tiny"}


def actor(num_rates: int = 1) -> dict[str, Tensor]:
    """A random actor in the authors' form whose actions vary with the image."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"fc1": (16, TOKENS), "fc2": (16, 16), "fc_mu": (6 + num_rates, 16)}
    tensors = {f"{k}.weight": torch.randn(*s, generator=generator) * s[1] ** -0.5 for k, s in sizes.items()}
    return tensors | {f"{k}.bias": torch.zeros(shape[0]) for k, shape in sizes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("token_mode", ["prune", "merge", "prune_merge"])
@torch.inference_mode()
def test_the_authors_selector_drives_the_inference_as_by_hand(authors: dict[str, Any], token_mode: str) -> None:
    selector = load_prance_selector(actor(1 + (token_mode == "prune_merge")), 1 + (token_mode == "prune_merge"))
    envs = PranceVectorEnv(IMAGES, "DISABLED", **authors, token_mode=token_mode, normalize_actions=False)
    assert (selector.observation_space.shape, selector.action_space) == (
        envs.single_observation_space.shape,
        envs.single_action_space,
    )
    net = authors_net(token_mode)
    observations, _ = envs.reset(seed=0, options={"index": np.arange(IMAGES)})
    state = net.begin(envs.lanes.engine.dataset.fetch(np.arange(IMAGES)), key_mean=True)
    np.testing.assert_allclose(observations, state.padded_key_mean(TOKENS), atol=1e-5)
    for group in (1, 2, 3):
        actions, _ = selector.predict(observations, deterministic=True)
        assert len(np.unique(actions[:, -1])) > 2
        choice = GroupChoice.from_actions(net.space, torch.from_numpy(actions))
        state = net.run_group(state, group, choice)
        observations, _, terminated, _, infos = envs.step(actions)
        np.testing.assert_allclose(observations, state.padded_key_mean(TOKENS), atol=1e-4)
        np.testing.assert_array_equal(infos["num_tokens"], state.num_tokens)
        np.testing.assert_array_equal(infos["macs"], net.macs_to_go(state))
        np.testing.assert_allclose(envs.lanes.lane(4).state.tokens, state[[4]].tokens, atol=1e-3)
    assert terminated.all()
    np.testing.assert_array_equal(infos["prediction"], net.forward_head(state).argmax(1))
    assert (observations[np.arange(TOKENS) >= infos["num_tokens"][:, None]] == 0).all()


def test_the_selector_is_evaluated_and_loaded_like_any_agent(authors: dict[str, Any], tmp_path: Path) -> None:
    settings = PranceEnv(**authors, normalize_actions=False).settings
    load_prance_selector(actor()).save(tmp_path / "selector.safetensors")
    result = evaluate(load_agent(str(tmp_path / "selector.safetensors"), settings), settings)
    assert result.actions.shape == (IMAGES, 3, 7)
    assert len(np.unique(result.macs_fraction)) > 2
    assert evaluate(load_agent("full", settings), settings).macs_fraction.tolist() == [1.0] * IMAGES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_cached_is_what_was_computed(tmp_path: Path, dtype: str) -> None:
    kwargs = noise_kwargs(small_net("tome"), tmp_path / "net")
    cached = {"cache_dir": str(tmp_path / "cache"), "dtype": dtype, "observation": "key_mean"}
    envs = PranceVectorEnv(IMAGES, **kwargs, **cached)
    options = {"index": np.arange(IMAGES)}
    fresh, again = (envs.reset(seed=0, options=options)[0] for _ in range(2))
    np.testing.assert_array_equal(fresh, again)
    assert envs.lanes.engine.cache.held.all()
    unkept = PranceVectorEnv(IMAGES, **kwargs, **{**cached, "cache_dir": None, "cache_mb": 0})
    np.testing.assert_array_equal(unkept.reset(seed=0, options=options)[0], fresh)
    reader = InferenceEngine(envs.lanes.engine.net, envs.lanes.engine.dataset, cache_dir=tmp_path / "cache")
    assert not reader.cache.recall(options["index"]).any()
    keyed = InferenceEngine(reader.net, reader.dataset, cache_dir=tmp_path / "cache", key_mean=True)
    assert keyed.cache.recall(options["index"]).all()
    np.testing.assert_array_equal(keyed.observe(keyed.start(options["index"]), "key_mean"), fresh)
    assert len(np.unique(fresh)) > IMAGES


def test_the_tokens_of_an_inference_do_not_depend_on_what_is_observed(tmp_path: Path) -> None:
    kwargs = noise_kwargs(small_net("merge"), tmp_path)
    results = []
    for observation in ("cls", "key_mean"):
        envs, _, steps = played_envs(**kwargs, observation=observation)
        results.append([envs.lanes.lane(3).state.tokens.numpy(), *(s[1] for s in steps), steps[-1][-1]["prediction"]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_before_the_first_block_there_are_no_keys_and_large_ones_are_clipped(tmp_path: Path) -> None:
    net = small_net("prune")
    kwargs = noise_kwargs(net, tmp_path)
    env = PranceEnv(**kwargs, observation="key_mean", decide_first_group=True)
    observation, _ = env.reset(seed=0)
    assert not observation.any()
    observation, *_ = env.step(env.action_space.high)
    assert observation.any()
    state = env.state_dict()
    state["parts"][0]["state"]["tensors"]["key_mean"].fill_(-1e9)
    clipped, _ = env.load_state_dict(state)
    assert (clipped == -KEY_MEAN_BOUND).all()
    assert env.observation_space.contains(clipped)


def test_an_engine_that_keeps_no_keys_says_what_to_do(tmp_path: Path) -> None:
    engine = PranceEnv(**noise_kwargs(small_net("prune"), tmp_path)).settings.engine()
    with pytest.raises(ValueError, match=r"key_mean.*InferenceEngine\(\.\.\., key_mean=True\)"):
        engine.observe(engine.start(np.arange(2)), "key_mean")
