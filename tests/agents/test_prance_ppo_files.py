"""Folders of PrancePPO: what they hold, that they come back the same, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guess_env import OBSERVATION, QUICK, Guess
from safetensors import safe_open
from safetensors.torch import load_file

from agents import PrancePPO
from agents.prance_ppo import PrancePPOConfig
from supernet.files import CHECKSUM, OURS, write_tensors


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a trained agent."""
    PrancePPO(Guess(16), QUICK, seed=2).learn(200).save(tmp_path / "agent")
    return tmp_path / "agent"


def test_a_saved_agent_is_safetensors_and_json_and_comes_back_the_same(saved: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    agent = PrancePPO.load(saved)
    agent.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    rows = np.random.default_rng(0).normal(size=(5, OBSERVATION)).astype(np.float32)
    trained = PrancePPO(Guess(16), QUICK, seed=2).learn(200)
    np.testing.assert_array_equal(
        agent.predict(rows, deterministic=True)[0], trained.predict(rows, deterministic=True)[0]
    )
    assert agent.config == QUICK
    assert agent.num_timesteps == trained.num_timesteps


def test_the_range_of_prices_stays_where_an_environment_says_nothing_of_it(saved: Path, tmp_path: Path) -> None:
    agent = PrancePPO.load(saved)
    agent.price_range = (0.1, 1.0)
    agent.set_env(Guess(16))
    agent.save(tmp_path / "again")
    assert PrancePPO.load(tmp_path / "again", Guess(16)).price_range == (0.1, 1.0)


def _without(key: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[key]
        _rewrite(folder, tensors)

    return edit


def _with(key: str, value: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, {**load_file(folder / "model.safetensors"), key: value})


def _rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    with safe_open(folder / "model.safetensors", "pt") as f:
        texts = json.loads(f.metadata()[OURS])
    del texts[CHECKSUM]
    write_tensors(tensors, folder / "model.safetensors", texts)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"actor": 1}))


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])  # type: ignore[return-value]


def _edited(key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, key: value}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("policy.actor.0.weight"), "missing policy.actor.0.weight"),
        (_without("adam.actor.0.weight.exp_avg"), "missing adam"),
        (_without("generator"), "missing generator"),
        (_with("extra", torch.zeros(1)), "unexpected extra"),
        (_with("policy.log_std", torch.zeros(5)), r"policy.log_std has the shape \(5,\) instead of \(2,\)"),
        (_with("policy.log_std", torch.full((2,), torch.nan)), "policy.log_std holds NaN"),
        (_pickled, "model.safetensors is damaged or not a safetensors file"),
        (_cut("model.safetensors"), "model.safetensors is damaged"),
        (_cut("config.json"), "config.json is no JSON file"),
        (_edited("agent", "StaticAgent"), "config.json: agent='StaticAgent' must be 'PrancePPO'"),
        (_edited("seed", "0"), "config.json: seed='0' must be a valid integer"),
        (_edited("config", {"gamma": 1}), "config.json.*missing are"),
        (_edited("config", {**PrancePPOConfig().to_dict(), "hidden": [2**20, 2**20]}), "instead of .1048576"),
        (_edited("seed", 8), "does not belong to the config.json"),
    ],
)
def test_damaged_agents_are_refused(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        PrancePPO.load(saved)


def test_paths_that_hold_no_agent_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PrancePPO.load(tmp_path / "nowhere")
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is a file"):
        PrancePPO.load(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="is a file"):
        PrancePPO.load(saved).save(tmp_path / "model.zip")
    shutil.copytree(saved, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        PrancePPO.load(tmp_path / "half")


def test_a_killed_save_leaves_the_old_agent(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = PrancePPO.load(saved, Guess(16))
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    agent.learn(200, reset_num_timesteps=False)

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("supernet.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        agent.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
