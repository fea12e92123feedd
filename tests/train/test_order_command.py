"""`prance order` and `prance import timm --order`: sorted supernets in folders, with reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
from command_line import prance, refusal
from helpers import random_net
from training_nets import CONFIG

from prance_env.images.loading import load_dataset
from prance_env.supernets import BUNDLED
from supernet import from_pretrained, reorder, reorder_by_importance, save_pretrained
from train.networks.importance import random_scores, taylor_scores
from train.networks.ordering import draw_batches, load_order, prefix_accuracies


def test_a_supernet_is_sorted_with_a_report_and_can_be_sorted_back(
    checkpoint: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "ordered"
    numbers = ["--images", "12", "--batch-size", "4", "--check-images", "9", "--ablate-images", "6"]
    words = ["order", "--supernet", checkpoint, "--dataset", str(folder), "--out", str(out), *numbers]
    prance(monkeypatch, *words)
    before, after = from_pretrained(checkpoint), from_pretrained(out)
    back = reorder(after, load_order(out / "order.safetensors").inverse())
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in before.state_dict().items())
    assert not torch.equal(before.pos_embed, after.pos_embed)
    report = json.loads((out / "importance.json").read_text())
    assert report["accuracy"]["before"]["full"] == report["accuracy"]["after"]["full"]
    assert set(report["rank_correlation"]) == {"taylor", "magnitude", "markov", "random"}
    assert len(report["rank_correlation"]["taylor"]["heads"]) == before.space.depth
    text = capsys.readouterr().out
    assert "narrowest" in text
    assert "Rank correlation" in text
    assert "holds a network already" in refusal(monkeypatch, *words)


def test_a_network_without_a_classifier_is_sorted_without_a_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(random_net(replace(CONFIG, num_classes=0)), tmp_path / "net")
    words = ["order", "--supernet", tmp_path / "net", "--dataset", folder, "--images", 6, "--ablate-images", 2]
    prance(monkeypatch, *words, "--out", tmp_path / "out")
    assert "accuracy" not in json.loads((tmp_path / "out" / "importance.json").read_text())
    assert "no classifier, so that there is no table of accuracies" in capsys.readouterr().out


def test_images_for_the_table_are_missed_before_units_are_scored(
    checkpoint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "train", tmp_path / "images" / "train")
    monkeypatch.setattr("train.networks.ordering.unit_scores", Mock(side_effect=AssertionError("scored")))
    words = ["order", "--supernet", checkpoint, "--dataset", tmp_path / "images", "--out", tmp_path / "out"]
    for more in ([], ["--check-images", 0, "--ablate-images", 4]):
        assert "split='val' is not in" in refusal(monkeypatch, *words, *more)


def test_the_report_counts_the_images_that_there_were(
    checkpoint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["order", "--supernet", checkpoint, "--dataset", folder, "--images", 99, "--batch-size", 18]
    for score, images in (("taylor", 36), ("magnitude", 0), ("random", 0)):
        prance(monkeypatch, *words, "--score", score, "--out", tmp_path / score)
        report = json.loads((tmp_path / score / "importance.json").read_text())
        assert report["images"] == images
        assert report["check_images"] == 36
        text = capsys.readouterr().out
        assert f"Units sorted by {score}{', on 36 images' if images else ''};" in text
        assert "Accuracy, 36 images" in text


def test_a_damaged_permutation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "order.safetensors").write_text("none")
    with pytest.raises(ValueError, match="damaged"):
        load_order(tmp_path / "order.safetensors")


def test_a_model_of_timm_is_sorted_when_it_is_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=4, num_heads=2, num_classes=3)
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: small)
    words = ["import", "timm", "vit_tiny_patch16_224", "--out", str(tmp_path / "net"), "--order", "taylor"]
    assert "pass --dataset" in refusal(monkeypatch, *words)
    assert not (tmp_path / "net").exists()
    prance(monkeypatch, *words, "--dataset", str(folder))
    prance(monkeypatch, *words[:4], str(tmp_path / "plain"))
    plain, net = from_pretrained(tmp_path / "plain"), from_pretrained(tmp_path / "net")
    order = load_order(tmp_path / "net" / "order.safetensors")
    assert torch.equal(reorder(plain, order).pos_embed, net.pos_embed)


@pytest.mark.slow
def test_taylor_finds_the_units_that_a_trained_network_needs() -> None:
    net = from_pretrained(BUNDLED["digits"])
    train, val = (load_dataset("digits", split) for split in ("train", "val"))
    shuffled = reorder_by_importance(net, random_scores(net.config, seed=1))
    ordered = reorder_by_importance(shuffled, taylor_scores(shuffled, draw_batches(train, 256, 8)))
    batches = draw_batches(val, 400, 200)
    before, after = (prefix_accuracies(n, batches) for n in (shuffled, ordered))
    assert after["full"] == before["full"] > 0.9
    assert after["width 48"] > before["width 48"] + 0.1
    assert after["mlp 1"] >= before["mlp 1"]
