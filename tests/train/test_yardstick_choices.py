"""What yardsticks are chosen by: images of one split, and copies of those that they are judged on, never these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import make_engine, settings_for
from small_nets import small_net

from agents import ConfidenceAgent
from prance_env import ImageDataset, InferenceEngine
from prance_env.images.source import ImageSource
from prance_env.settings import EnvSettings
from train.search.memory import Memory
from train.search.noisy_copies import NoisyCopy
from train.search.static import SearchResult, macs_of_static
from train.yardsticks import compute as maker
from train.yardsticks.compute import YardstickSettings, oracle_fronts, per_stratum_front, run_yardsticks

IMAGES = {"train": 18, "val": 24, "test": 30}


@pytest.fixture
def envs(monkeypatch: pytest.MonkeyPatch) -> dict[str, EnvSettings]:
    """Splits that are told apart by how many images they have; one price each."""
    net = small_net("prune", groups=(1, 1))
    made = {s: replace(settings_for(make_engine(net, n)), split=s) for s, n in IMAGES.items()}
    monkeypatch.setattr(maker.EnvSettings, "from_id", lambda env, split, **given: made[split])
    monkeypatch.setattr(maker, "PRICES", np.array([0.1]))
    monkeypatch.setattr(maker, "CONFIDENCE_PRICES", np.array([0.1]))
    return made


def search(engine: InferenceEngine, index: Any, *args: Any, **named: Any) -> SearchResult:
    """Six random subnets, right about random images."""
    rng, space = np.random.default_rng(0), engine.config.space
    actions = rng.random((6, space.num_decisions, space.action_size))
    return SearchResult(actions, macs_of_static(engine, actions), rng.random((6, len(index))) < 0.5)


def test_everything_is_chosen_on_one_split_and_judged_on_another(
    envs: dict[str, EnvSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = Mock(side_effect=search)
    tuned = Mock(side_effect=lambda engine, index, starts, *rest: ConfidenceAgent(starts[0], engine.config))
    pruned = Mock(return_value=[])
    monkeypatch.setattr(maker, "evolve_static_front", searched)
    monkeypatch.setattr(maker, "tune_confidence", tuned)
    monkeypatch.setattr(maker, "nvit_networks", pruned)
    monkeypatch.setattr(maker, "noisy_copy", lambda env, seed: NoisyCopy(env.engine().dataset, seed))
    monkeypatch.setattr("train.yardsticks.static_designs.SHARES", (0.6,))
    made = run_yardsticks(YardstickSettings(num_subnets=6, oracle_subnets=3, copies=1, seed=4), tmp_path)
    engines = {split: env.engine() for split, env in envs.items()}
    for chosen in (searched, tuned):
        engine, index = chosen.call_args.args[:2]
        assert engine is engines["val"]
        assert index.tolist() == [*range(IMAGES["val"])]
    pruned.assert_called_once_with(engines["train"], 4)
    assert {front.correct.shape[1] for front in made.fronts.values()} == {IMAGES["test"]}


def test_the_oracle_chooses_by_copies_of_the_images_it_is_judged_on(
    envs: dict[str, EnvSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = {split: env.engine().dataset for split, env in envs.items()}
    drawn: list[tuple[str, int]] = []

    def copy(env: EnvSettings, seed: int) -> ImageSource:
        drawn.append((env.split, seed))
        return NoisyCopy(copied[env.split], seed)

    weigh, choose = Mock(return_value=3.0), Mock(side_effect=maker.oracle.choose_crossfitted)
    monkeypatch.setattr(maker, "noisy_copy", copy)
    monkeypatch.setattr(maker.oracle, "tune_prior_votes", weigh)
    monkeypatch.setattr(maker.oracle, "choose_crossfitted", choose)
    test = envs["test"].engine()
    assert isinstance(test.dataset, ImageDataset)
    mirrored = InferenceEngine(test.net, replace(test.dataset, images=test.dataset.images.flip(-1)))
    found, settings = search(envs["val"].engine(), range(24)), YardstickSettings(oracle_subnets=3, copies=2, seed=4)
    seen, unseen = (
        oracle_fronts(found, envs["val"], replace(settings_for(engine), split="test"), settings, Memory(out, {}))
        for engine, out in ((test, tmp_path / "seen"), (mirrored, tmp_path / "unseen"))
    )
    assert drawn == 2 * [("val", 5000), ("val", 5001), ("test", 5000), ("test", 5001)]
    np.testing.assert_array_equal(seen["oracle"].macs_fraction, unseen["oracle"].macs_fraction)
    assert (seen["oracle_lucky"].macs_fraction != unseen["oracle_lucky"].macs_fraction).any()
    assert weigh.call_args.args[3].shape == (3, IMAGES["val"])
    assert [call.args[3] for call in choose.call_args_list] == [3.0, 3.0]


def test_every_stratum_has_its_own_best_subnet(envs: dict[str, EnvSettings], tmp_path: Path) -> None:
    engine = envs["test"].engine()
    space = engine.config.space
    actions = np.ones((2, space.num_decisions, space.action_size)) * np.array([1.0, 0.0])[:, None, None]
    macs, stratum = macs_of_static(engine, actions), np.repeat([0, 1], 10)
    found = SearchResult(actions, macs, np.stack([stratum >= 0, stratum == 0]))
    front = per_stratum_front(found, stratum, envs["test"], Memory(tmp_path, {}))
    # Nobody saw stratum 2, which gets what is best for all.
    np.testing.assert_allclose(front.macs_fraction, [macs[np.where(engine.dataset.difficulty == 0, 1, 0)]])
