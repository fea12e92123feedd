"""Supernet training: reproducible, interruptible, resumable, and it learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PATIENCE

from supernet import SubnetConfig, create_supernet, from_pretrained, supernet_config
from train.networks.loop import train_supernet
from train.networks.presets import PRESETS
from train.networks.recipes.digits import DigitsRecipe
from train.networks.sandwich import min_subnet, random_subnet

TINY = DigitsRecipe(steps=6, batch_size=8, full_only=0.3, checkpoint_every=2, val_scenes=32)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return from_pretrained(folder).state_dict()


def assert_equal_weights(a: Path, b: Path) -> None:
    other = weights(b)
    for name, value in weights(a).items():
        assert torch.equal(value, other[name]), name


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_supernet(replace(TINY, seed=seed), tmp_path / name)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["head.weight"], weights(tmp_path / "c")["head.weight"])


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_supernet(TINY, tmp_path / "whole")
    loss = DigitsRecipe.step_loss

    def interrupt(recipe, net, heads, turn):  # type: ignore[no-untyped-def]
        if turn.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(recipe, net, heads, turn)

    monkeypatch.setattr(DigitsRecipe, "step_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(TINY, tmp_path / "parts")
    monkeypatch.undo()
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"] == 3
    train_supernet(TINY, tmp_path / "parts", resume=True)
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [2, 4, 6]


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path: Path) -> None:
    train_supernet(TINY, tmp_path / "run")
    settings = (tmp_path / "run" / "config.yml").read_text()
    with pytest.raises(FileExistsError, match="--resume"):
        train_supernet(replace(TINY, seed=5), tmp_path / "run")
    assert (tmp_path / "run" / "config.yml").read_text() == settings
    with pytest.raises(ValueError, match="lr"):
        train_supernet(replace(TINY, lr=1.0), tmp_path / "run", resume=True)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train_supernet(TINY, tmp_path / "other", resume=True)


def test_a_diverging_loss_is_an_error_and_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="--lr"):
        train_supernet(replace(TINY, lr=1e30, checkpoint_every=100), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_sandwich_members_are_in_the_space_and_cover_it() -> None:
    space = supernet_config("digits").space
    rng = np.random.default_rng(0)
    full = SubnetConfig.full(space)
    widths, full_tails, narrow = set(), 0, 0
    for _ in range(200):
        subnet = random_subnet(space, 2, rng)
        subnet.validate(space)
        assert torch.equal(subnet.embed_dim[0], subnet.embed_dim[1])
        widths.update(subnet.embed_dim[0].tolist())
        narrow += int(not torch.equal(subnet.embed_dim[:1], full.embed_dim))
        full_tails += int(subnet.keep_rate[0, -1] == 1)
        smallest = min_subnet(space, 1, rng)
        assert torch.equal(smallest.embed_dim, SubnetConfig.min(space).embed_dim)
    assert widths == set(space.embed_dims)
    assert 60 < narrow < 140
    assert 60 < full_tails < 180


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from dataclasses import replace; from train.networks.loop import *\n"
        "from train.networks.recipes.digits import DigitsRecipe\n"
        "train_supernet(DigitsRecipe(steps=400, batch_size=8, checkpoint_every=2, val_scenes=32), Path('run'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "run" / "last.pt").exists():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert checkpoint["step"] >= 2
    assert from_pretrained(tmp_path / "run").config == create_supernet("digits").config


@pytest.mark.slow
def test_the_quick_recipe_learns_to_find_the_digit_that_occurs_twice(tmp_path: Path) -> None:
    settings = replace(PRESETS["digits-quick"], steps=240, batch_size=32, checkpoint_every=240, val_scenes=1000)
    train_supernet(settings, tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["val_accuracy_full"] > 0.5
    assert row["val_accuracy_full"] > row["val_accuracy_min"] + 0.1
