"""Trainings that end when nothing gets better: by what is trained, and with the weights that were best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_nets import assert_equal_weights, images_recipe, saved_net, weights

from supernet import Supernet, from_pretrained
from train.joint import JointRecipe
from train.networks.loop import train_supernet
from train.networks.presets import PRESETS
from train.networks.recipes.images import ImagesRecipe


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_net(tmp_path_factory.mktemp("net"))


@pytest.mark.parametrize("interrupted", [False, True])
def test_training_ends_early_when_nothing_gets_better_and_the_best_weights_stay(
    interrupted: bool, source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies, seen = iter([0.5, 0.6, 0.6, 0.6, 0.7, 0.7]), list[dict[str, torch.Tensor]]()

    def validate(self: ImagesRecipe, net: Supernet) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return dict.fromkeys(("full", "min", "narrowest", "random"), next(accuracies))

    monkeypatch.setattr(ImagesRecipe, "validate", validate)
    recipe = images_recipe(source, folder, steps=6, checkpoint_every=1, patience=2)
    for hours in (0.0, 0.0, 0.0, None) if interrupted else (None,):
        net = train_supernet(recipe, tmp_path, resume=(tmp_path / "last.pt").exists(), max_hours=hours)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, seen[1][name]), name
        assert torch.equal(value, net.state_dict()[name]), name
    assert not torch.equal(seen[1]["head.weight"], seen[3]["head.weight"])


def test_before_it_is_validated_a_run_with_patience_has_the_last_weights(
    source: str, folder: Path, tmp_path: Path
) -> None:
    for name, patience in (("a", 0), ("b", 2)):
        train_supernet(images_recipe(source, folder, patience=patience), tmp_path / name, max_hours=0)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "b")["head.weight"], from_pretrained(source).state_dict()["head.weight"])


def test_patience_is_for_what_is_trained(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([{"full": 0.5 - n / 10, "min": n / 5, "narrowest": n / 5, "random": n / 5} for n in range(4)])
    monkeypatch.setattr(ImagesRecipe, "validate", lambda self, net: next(found))
    alone = images_recipe(source, folder, checkpoint_every=1, patience=1, subnets=0, smallest=False)
    train_supernet(alone, tmp_path)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2
    assert replace(alone, subnets=1).trained == ("full", "random")
    assert replace(alone, smallest=True).trained == ("full", "min", "narrowest")
    assert JointRecipe(agent="agent").trained == ("full", "random")
    assert PRESETS["digits"].trained == ()
