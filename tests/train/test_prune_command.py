"""`prance prune`, `prance train static` and `prance export --static`: from a supernet to a small network of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command_line import prance, refusal
from training_nets import saved_net

from supernet import SubnetConfig, from_pretrained, load_static
from train.networks.importance import full_network
from train.networks.recipes.static import StaticRecipe
from train.search.prune import subnet_within


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_net(tmp_path_factory.mktemp("net"))


@pytest.fixture
def pruned(source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = tmp_path / "pruned"
    numbers = [
        "--images",
        "99",
        "--batch-size",
        "18",
        "--check-images",
        "9",
        "--per-step",
        "4",
        "--target",
        "0.9",
        "0.6",
    ]
    kinds = ["--kinds", "heads", "hidden", "tokens"]
    prance(monkeypatch, "prune", "--supernet", source, "--dataset", folder, "--out", out, *numbers, *kinds)
    return out


def test_a_supernet_becomes_small_networks_and_subnets(
    pruned: Path, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net, report = from_pretrained(source), json.loads((pruned / "pruning.json").read_text())
    assert [row["name"] for row in report["networks"]] == ["0.9", "0.6"]
    for row, target in zip(report["networks"], (0.9, 0.6), strict=True):
        static = load_static(pruned / row["name"])
        assert static.macs() == row["macs"] == row["cost"] <= target * int(net.macs())
        subnet = SubnetConfig.from_json((pruned / f"{row['name']}-subnet.json").read_text())
        subnet.validate(net.space)
        assert int(net.macs(subnet)) == row["subnet_macs"] <= target * int(net.macs())
        assert 0 <= row["accuracy"] <= 1
    assert report["images"] == 36, "all that there are"
    assert (pruned / "pruning.png").stat().st_size > 5000
    words = ["prune", "--supernet", source, "--dataset", folder, "--out", pruned]
    assert "already; pass another --out" in refusal(monkeypatch, *words)
    # Pruned networks can be pruned on; there is no search space to be near to.
    more = pruned.parent / "more"
    again = ["--target", "0.9", "--images", "6", "--check-images", "0", "--kinds", "heads", "hidden"]
    prance(monkeypatch, "prune", "--supernet", pruned / "0.6", "--dataset", folder, "--out", more, *again)
    assert load_static(more / "0.9").macs() <= 0.9 * load_static(pruned / "0.6").macs()
    assert sorted(p.name for p in more.iterdir()) == ["0.9", "pruning.json", "pruning.png"]


@pytest.mark.slow
def test_a_pruned_network_is_trained_resumed_and_exported(
    pruned: Path, source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--steps", "4", "--batch-size", "6", "--checkpoint-every", "2", "--val-images", "12", "--flip", "0.5"]
    words = ["train", "static", "--from", pruned / "0.6", "--dataset", folder, *short]
    taught = ["--teacher", source, "--teacher-weight", "1"]
    prance(monkeypatch, *words, *taught, "--out", tmp_path / "whole")
    learning_rate = StaticRecipe.learning_rate

    def interrupt(self: StaticRecipe, step: int) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(self, step)

    monkeypatch.setattr(StaticRecipe, "learning_rate", interrupt)
    with pytest.raises(SystemExit, match="130"):
        prance(monkeypatch, *words, *taught, "--out", tmp_path / "parts")
    monkeypatch.setattr(StaticRecipe, "learning_rate", learning_rate)
    prance(monkeypatch, "train", "static", "--resume", "--out", tmp_path / "parts")
    before, whole, parts = (load_static(f) for f in (pruned / "0.6", tmp_path / "whole", tmp_path / "parts"))
    assert whole.block_sizes == before.block_sizes
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])
    assert not torch.equal(whole.pos_embed, before.pos_embed)
    prance(monkeypatch, "export", "--static", tmp_path / "whole", "--format", "torch", "--out", tmp_path / "exported")
    images = torch.rand(2, 3, 32, 32)
    exported = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    with torch.no_grad():
        assert torch.allclose(exported(images), whole(images), atol=1e-4)


def test_bad_input_is_a_sentence(source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["prune", "--supernet", source, "--dataset", folder, "--out", tmp_path / "out", "--images", "6"]
    for more, message in (
        (["--target", "1.5"], "must be shares in (0, 1]"),
        (["--target-ms", "3"], "--target-ms needs --latency-table"),
        (["--latency-table", tmp_path / "none.json"], "does not exist"),
        (["--bundles", "4"], "must be as many as kinds"),
        (["--target", "0.01"], "cannot be reached"),
        (["--latency-weight", "-1"], "latency_weight=-1.0 must be at least 0"),
    ):
        assert message in refusal(monkeypatch, *words, *more)
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").iterdir()]
    train = ["train", "static", "--out", tmp_path / "run"]
    assert "--from is missing" in refusal(monkeypatch, *train)
    assert "static.json" in refusal(monkeypatch, *train, "--from", source, "--dataset", folder)
    lone = ["--from", source, "--teacher", source]
    assert "teacher_weight=0.0 go together" in refusal(monkeypatch, *train, *lone)


def test_images_for_the_table_are_missed_before_anything_is_pruned(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "train", tmp_path / "images" / "train")
    monkeypatch.setattr("train.search.prune.global_prune", Mock(side_effect=AssertionError("pruned")))
    words = ["prune", "--supernet", source, "--dataset", tmp_path / "images", "--out", tmp_path / "out"]
    assert "split='val' is not in" in refusal(monkeypatch, *words, "--images", 6)
    assert not (tmp_path / "out").exists()


def test_a_target_below_every_subnet_leaves_the_network_alone(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net, static = from_pretrained(source), full_network(from_pretrained(source))
    assert subnet_within(net, static, lambda sizes: 2.0, target=1.0) is None  # milliseconds that no subnet has
    smallest = int(net.macs(SubnetConfig.min(net.space, 1)))
    target = 0.9 * smallest / int(net.macs())
    numbers = ["--images", "6", "--batch-size", "6", "--check-images", "0", "--per-step", "8", "--target", f"{target}"]
    prance(monkeypatch, "prune", "--supernet", source, "--dataset", folder, "--out", tmp_path / "out", *numbers)
    (row,) = json.loads((tmp_path / "out" / "pruning.json").read_text())["networks"]
    assert row["macs"] < smallest
    assert "subnet_macs" not in row
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [row["name"], "pruning.json", "pruning.png"]
