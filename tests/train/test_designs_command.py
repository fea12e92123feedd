"""`prance designs`: three methods side by side, and networks of any sizes among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import make_engine, random_net, settings_for
from image_files import engine_with_a_stand_in
from small_nets import small_net
from training_nets import CONFIG

from prance_env import InferenceEngine
from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageDataset
from supernet import StaticViT, save_static
from train.networks.importance import full_network
from train.networks.ordering import draw_batches
from train.play import played_by_full
from train.search.static import SearchResult
from train.yardsticks import compare_designs, static_designs
from train.yardsticks.compare_designs import DesignSettings, run_designs
from train.yardsticks.static_designs import (
    deepmad_subnets,
    load_networks,
    networks_front,
    nvit_networks,
    nvit_subnets,
    subnets_front,
)


def test_methods_are_compared_on_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(small_net("prune", groups=(1, 1)), 24)
    monkeypatch.setattr(compare_designs.EnvSettings, "from_id", lambda *a, **k: settings_for(engine))
    save_static(full_network(engine.net), tmp_path / "whole")
    settings = DesignSettings(num_subnets=6, images=12, seeds=(0, 1), networks=(str(tmp_path / "whole"),))
    report = run_designs(settings, tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "designs.json").read_text())
    for run in report["seeds"]:
        fronts = run["fronts"]
        own = {"deepmad", "nvit", "nvit, not trained", "evolution", "evolution from designs"}
        assert own <= set(run["methods"])
        assert run["methods"]["nvit"]["images"] == 24, "all that there are"
        assert set(fronts) == own | {"networks"}
        assert fronts["networks"]["rows"][0]["macs_fraction"] == 1
        assert fronts["networks"]["rows"][0]["accuracy"] == 0.5, "the full network, which is right about every other"
    assert [run["seed"] for run in report["seeds"]] == [0, 1]
    with pytest.raises(ValueError, match="num_subnets=1 must be at least 2"):
        replace(settings, num_subnets=1)


def test_evolution_searches_on_images_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, searched = make_engine(small_net("prune", groups=(1, 1)), 24), Mock(side_effect=KeyboardInterrupt)
    images = engine.dataset.fetch(np.arange(24))
    engine = InferenceEngine(engine.net, ImageDataset.from_tensors(images, torch.arange(24) // 4))  # as in a folder
    monkeypatch.setattr(compare_designs.EnvSettings, "from_id", lambda *a, **k: settings_for(engine))
    monkeypatch.setattr(compare_designs, "nvit_networks", lambda *a: [])
    monkeypatch.setattr(compare_designs, "evolve_static_front", searched)
    with pytest.raises(KeyboardInterrupt):
        run_designs(DesignSettings(num_subnets=6, images=8, seeds=(0,)), tmp_path)
    index = searched.call_args.args[1]
    assert len(index) == 8
    assert {*engine.labels[index].tolist()} == {*range(6)}


def test_methods_choose_on_their_splits_and_by_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = small_net("prune", groups=(1, 1)), list[tuple[Any, ...]]()
    engines = {split: make_engine(net, n) for split, n in (("train", 18), ("val", 20), ("test", 24))}
    split_of = {id(engine): split for split, engine in engines.items()}
    full = full_network(net), np.ones((1, net.space.num_decisions, net.space.action_size))

    def searched(engine: InferenceEngine, index: Any, count: int, seed: int, *rest: Any, starts: Any) -> SearchResult:
        seen.append(("evolution", split_of[id(engine)], seed, len(index), starts is not None))
        return SearchResult(full[1], np.ones(1), np.ones((1, len(index)), dtype=bool))

    def pruned(engine: InferenceEngine, seed: int) -> list[StaticViT]:
        seen.append(("nvit", split_of[id(engine)], seed))
        return [full[0]]

    monkeypatch.setattr(compare_designs.EnvSettings, "from_id", lambda env, split, **k: settings_for(engines[split]))
    monkeypatch.setattr(compare_designs, "evolve_static_front", searched)
    monkeypatch.setattr(compare_designs, "nvit_networks", pruned)
    run_designs(DesignSettings(num_subnets=4, images=12, seeds=(3, 5)), tmp_path)
    assert seen == [
        entry
        for seed in (3, 5)
        for entry in (("nvit", "train", seed), *(("evolution", "val", seed, 12, begun) for begun in (False, True)))
    ]


def test_designs_are_subnets_within_their_budgets() -> None:
    engine = make_engine(small_net("merge", groups=(1, 1)), 24)
    pruned = nvit_networks(engine, images=24)
    assert len(pruned) > 2
    assert all(network.block_sizes[0].embed_dim == 32 for network in pruned)
    for actions in (deepmad_subnets(engine.config, (0.01, 0.7, 0.9)), nvit_subnets(engine, pruned)):
        front = subnets_front(engine, actions)
        assert front.correct.shape == (len(actions), 24)
        assert (front.macs_fraction[-1] <= 0.9 + 1e-9).all()
    assert len(deepmad_subnets(engine.config, (0.01,))) == 0
    front = networks_front(engine, {"a": pruned[0]})
    with torch.no_grad():
        said = pruned[0](engine.dataset.fetch(np.arange(24))).argmax(1).numpy()
    np.testing.assert_array_equal(front.correct[0], said == engine.labels)
    assert front.macs_fraction[0, 0] == pruned[0].macs() / engine.full_macs


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_networks_are_judged_by_the_labels_of_what_is_shown(tmp_path: Path) -> None:
    engine, labels = engine_with_a_stand_in(tmp_path)
    full = networks_front(engine, {"full": full_network(engine.net)}).correct[0]
    assert full.tolist() == (played_by_full(engine, np.arange(12))[2] == labels).tolist()
    assert [label for _, part in draw_batches(engine.dataset, 12, 1) for label in part.tolist()] == [
        labels[i] for i in np.random.default_rng(0).permutation(12)
    ]


def test_units_are_scored_where_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(small_net("merge", groups=(1, 1)), 24)
    monkeypatch.setattr(static_designs, "full_network", lambda net: full_network(net).to("meta"))
    pruned = Mock(return_value=[])
    monkeypatch.setattr(static_designs, "global_prune", pruned)
    nvit_networks(engine, images=24)
    batches = pruned.call_args.args[1]
    assert {part.device.type for batch in batches for part in batch} == {"meta"}


def test_networks_for_other_images_are_refused(tmp_path: Path) -> None:
    engine = make_engine(small_net("prune", groups=(1, 1)), 24)
    save_static(full_network(small_net("prune", groups=(1, 1), num_classes=5)), tmp_path / "other")
    with pytest.raises(ValueError, match="has num_classes=5, the supernet 7"):
        load_networks([tmp_path / "other"], engine)
    with pytest.raises(FileNotFoundError, match=r"static\.json"):
        load_networks([tmp_path], engine)


def test_by_the_authors_rules_nobody_designs_a_subnet_for_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(small_net("prune", groups=(1, 1), prance_embed_dim=40), 24)
    monkeypatch.setattr(compare_designs.EnvSettings, "from_id", lambda *a, **k: settings_for(engine))
    (run,) = run_designs(DesignSettings(num_subnets=4, images=12, seeds=(0,)), tmp_path)["seeds"]
    assert {*run["fronts"]} == {"nvit, not trained", "evolution", "evolution from designs"}


def test_networks_that_know_their_classes_by_name_are_judged_by_these(folder: Path, tmp_path: Path) -> None:
    engine = InferenceEngine(random_net(CONFIG), load_dataset(str(folder), "val", CONFIG))
    named = full_network(random_net(CONFIG))
    named.config = replace(CONFIG, class_names=("class_2", "class_0", "class_1"))
    save_static(named, tmp_path / "named")
    with torch.no_grad():
        said = np.array([2, 0, 1])[named(engine.dataset.fetch(np.arange(36))).argmax(1).numpy()]
    found = networks_front(engine, load_networks([tmp_path / "named"], engine))
    assert found.correct[0].tolist() == (said == engine.labels).tolist()
    named.config = replace(CONFIG, class_names=("cat", "dog", "cow"))
    save_static(named, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other knows the classes \['cat'.* for \['class_0'"):
        load_networks([tmp_path / "other"], engine)
    assert load_networks([tmp_path / "other"], engine, class_map="classes.txt")
    # One that calls its classes as the supernet does is judged as the supernet is.
    animals = random_net(named.config)
    with pytest.warns(UserWarning, match="which the supernet does not know"):
        engine = InferenceEngine(animals, load_dataset(str(folder), "val", animals.config))
    assert load_networks([tmp_path / "other"], engine)
