"""The per-image oracle: it finds what is best, and luck does not count."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from helpers import make_engine, settings_for

from prance_env import InferenceEngine
from prance_env.images.digits import make_scenes
from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageSource
from prance_env.settings import EnvSettings
from supernet import Supernet
from train.search.noisy_copies import NoisyCopy, noisy_copy
from train.search.oracle import (
    PRIOR_VOTES,
    choose_crossfitted,
    choose_lucky,
    judge_subnets,
    stratum_votes,
    tune_prior_votes,
    useful_subnets,
)
from train.search.static import SearchResult, correct_of_static

PRICES = np.array([0.05, 0.2, 0.5])


def guessers(seed: int, images: int = 3000, subnets: int = 40, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Subnets that all guess, at different costs: (K, N) votes and (K,) MACs."""
    rng = np.random.default_rng(seed)
    return rng.random((subnets, images)) < 1 / classes, np.linspace(0.1, 1, subnets)


def test_the_lucky_oracle_is_the_best_choice_for_every_image() -> None:
    correct, macs = guessers(0, 20, 6, 3)
    choice = choose_lucky(correct, macs, 0.3)
    for image, chosen in enumerate(choice):
        assert correct[chosen, image] - 0.3 * macs[chosen] == max(correct[:, image] - 0.3 * macs)


def test_the_crossfitted_oracle_is_not_credited_for_guesses() -> None:
    image, macs = guessers(0)
    copies = [guessers(seed)[0] for seed in (1, 2, 3)]
    votes, rows = np.mean(copies, axis=0), np.arange(image.shape[1])
    lucky = image[choose_lucky(image, macs, 0.1), rows].mean()
    prior = np.repeat(votes.mean(axis=1, keepdims=True), len(rows), axis=1)
    fitted = image[choose_crossfitted(votes, 3, prior, 1.0, macs, 0.1), rows].mean()
    assert lucky > 0.9
    assert fitted == pytest.approx(0.1, abs=0.02)


def test_the_crossfitted_oracle_finds_what_lasts() -> None:
    rng = np.random.default_rng(0)
    expert = rng.integers(5, size=400)  # the one subnet that is right about an image, whatever the noise
    votes = (np.arange(5)[:, None] == expert).astype(float)
    macs, prior = np.linspace(0.1, 0.5, 5), np.full((5, 400), 0.2)
    np.testing.assert_array_equal(choose_crossfitted(votes, 4, prior, 2.0, macs, 0.1), expert)
    assert (choose_crossfitted(votes, 4, prior, np.inf, macs, 0.1) == 0).all()


def test_infinitely_many_prior_votes_choose_per_stratum() -> None:
    rng = np.random.default_rng(0)
    stratum, asked = rng.integers(3, size=90), np.array([2, 0, 1, 0, 7])
    votes, macs = rng.random((6, 90)), np.linspace(0.1, 1, 6)
    prior = stratum_votes(votes, stratum, asked)
    choice = choose_crossfitted(rng.random((6, 5)), 4, prior, np.inf, macs, 0.2)
    for s, chosen in zip(asked, choice, strict=True):
        rows = stratum == s if s < 3 else np.ones(90, dtype=bool)
        assert chosen == (votes[:, rows].mean(axis=1) - 0.2 * macs).argmax()


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0.0, 2.0), (0.5, 2.0, np.inf)])
def test_the_noisier_the_votes_the_more_the_stratum_counts(noise: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    correct = rng.random((8, 2000)) < np.linspace(0.5, 0.8, 8)[:, None]
    votes = correct + noise * 4 * rng.normal(size=correct.shape)
    prior = np.repeat(correct.mean(axis=1, keepdims=True), 2000, axis=1)
    found = tune_prior_votes(votes, 4, prior, correct, np.linspace(0.1, 1, 8), 0.05)
    assert found in PRIOR_VOTES
    assert low <= found <= high


def test_useful_subnets_are_those_near_the_best_of_some_stratum() -> None:
    rng = np.random.default_rng(0)
    correct = rng.random((30, 200)) < 0.5
    found = SearchResult(rng.random((30, 3, 7)), rng.random(30), correct)
    stratum = np.arange(200) % 2
    chosen = useful_subnets(found, stratum, PRICES, 12)
    assert len(set(chosen.tolist())) == 12
    assert len(useful_subnets(found, stratum, PRICES, 99)) == 30
    masks = [np.ones(200, dtype=bool), stratum == 0, stratum == 1]
    gaps = np.full(30, np.inf)
    for rows, price in product(masks, PRICES):
        score = correct[:, rows].mean(1) - price * found.macs_fraction
        assert score.argmax() in chosen
        gaps = np.minimum(gaps, score.max() - score)
    assert gaps[chosen].max() <= np.delete(gaps, chosen).min()
    assert set(chosen[: len(set(found.best_at(PRICES)))]) == set(found.best_at(PRICES))


def test_subnets_are_judged_one_by_one_with_the_labels_probability(digits_net: Supernet) -> None:
    engine, index, done = make_engine(digits_net, 24), np.array([3, 0, 23]), list[int]()
    actions = np.random.default_rng(0).random((2, 3, engine.config.space.action_size))
    actions[0] = 1
    correct, vote = judge_subnets(engine, index, actions, done.append)
    assert done == [1, 2]
    for k in range(2):
        np.testing.assert_array_equal(correct[k], correct_of_static(engine, index, actions[k]))
    with torch.inference_mode():
        prob = engine.net(engine.dataset.images[index]).softmax(-1)[range(3), engine.dataset.labels[index]]
    np.testing.assert_allclose(2 * vote[0] - correct[0], prob, atol=1e-5)


def test_other_images_get_noise_that_stays_the_same(digits_net: Supernet) -> None:
    engine = make_engine(digits_net, 32)
    source = engine.dataset
    copy, other = NoisyCopy(source, 1), NoisyCopy(source, 2)
    assert isinstance(copy, ImageSource)
    assert len({source.identity(), copy.identity(), other.identity(), NoisyCopy(source, 1, 0.2).identity()}) == 4
    everything = copy.fetch(np.arange(32))
    assert everything.dtype == torch.uint8
    assert torch.equal(everything[[5, 2]], copy.fetch(np.array([5, 2])))
    assert not torch.equal(everything, other.fetch(np.arange(32)))
    inside = (source.images > 100) & (source.images < 150)
    difference = (everything.float() - source.images)[inside]
    assert difference.std() == pytest.approx(25.5, rel=0.1)
    assert abs(difference.mean()) < 1
    assert torch.equal(copy.labels, source.labels)
    assert torch.equal(copy.difficulty, source.difficulty)
    InferenceEngine(engine.net, copy).start(np.arange(3))
    assert isinstance(noisy_copy(EnvSettings.from_id(split="val"), 0), type(load_dataset("digits", "val")))
    assert settings_for(engine).engine() is engine


def test_a_copy_of_a_scene_is_the_same_scene_with_other_noise() -> None:
    scenes, again = make_scenes(200, "val", 3), make_scenes(200, "val", 3, noise_seed=0)
    other = make_scenes(200, "val", 3, noise_seed=1)
    assert torch.equal(scenes.cells, again.cells)
    assert torch.equal(scenes.labels, other.labels)
    assert torch.equal(again.images, make_scenes(200, "val", 3, noise_seed=0).images)
    for a, b in ((scenes, again), (again, other)):
        bright = (a.images > 100) & (a.images < 150)
        difference = (a.images.float() - b.images)[bright]
        # Two independent draws of noise of std .1.
        assert difference.std() == pytest.approx(25.5 * 2**0.5, rel=0.15)


def test_copies_of_the_scenes_of_digits_differ_by_their_seeds(few_scenes: None) -> None:
    settings = EnvSettings.from_id(split="val")
    first, second = noisy_copy(settings, 1), noisy_copy(settings, 2)
    assert torch.equal(first.labels, load_dataset("digits", "val").labels)
    assert not torch.equal(first.fetch(np.arange(4)), second.fetch(np.arange(4)))
