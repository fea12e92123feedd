"""Agent training and loading: reproducible, resumable, refusing what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import StaticAgent
from prance_env.lanes import EnvSettings
from supernet import SubnetConfig
from train import agent as stage
from train.agent import AgentTraining, load_agent, train_agent

TINY = AgentTraining(n_envs=64, total_timesteps=64 * 6 * 5)


@pytest.fixture(autouse=True)
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "ROLLOUTS_PER_CHECKPOINT", 2)


def assert_equal_policies(a: BaseAlgorithm, b: BaseAlgorithm) -> None:
    for (name, x), y in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_agent(TINY, tmp_path / "whole", progress_bar=False)
    again = train_agent(TINY, tmp_path / "again", progress_bar=False)
    assert_equal_policies(whole, again)

    on_step = stage._Checkpoints._on_step

    def interrupt(self: stage._Checkpoints) -> bool:
        if self.num_timesteps > 64 * 6 * 3:
            raise KeyboardInterrupt
        return on_step(self)

    monkeypatch.setattr(stage._Checkpoints, "_on_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_agent(TINY, tmp_path / "parts", progress_bar=False)
    monkeypatch.setattr(stage._Checkpoints, "_on_step", on_step)
    resumed = train_agent(TINY, tmp_path / "parts", resume=True, progress_bar=False)
    assert resumed.num_timesteps == whole.num_timesteps
    assert_equal_policies(whole, resumed)

    whole_rows, resumed_rows = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts"))
    assert whole_rows == resumed_rows


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path: Path) -> None:
    train_agent(TINY, tmp_path / "run", progress_bar=False)
    with pytest.raises(FileExistsError, match="--resume"):
        train_agent(TINY, tmp_path / "run", progress_bar=False)
    with pytest.raises(ValueError, match="macs_weight"):
        train_agent(replace(TINY, macs_weight=9.0), tmp_path / "run", resume=True, progress_bar=False)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train_agent(TINY, tmp_path / "none", resume=True, progress_bar=False)


def test_a_trained_agent_is_loaded_with_the_settings_it_was_trained_with_only(tmp_path: Path) -> None:
    train_agent(replace(TINY, observation="constant", total_timesteps=64 * 6), tmp_path / "run", progress_bar=False)
    observation = EnvSettings.from_id("Prance-Digits-v0", "val", observation="constant")
    assert load_agent(str(tmp_path / "run"), observation) is not None
    with pytest.raises(ValueError, match="trained for observations"):
        load_agent(str(tmp_path / "run"), EnvSettings.from_id("Prance-Digits-v0", "val"))


def test_agents_are_found_by_name_and_by_file_and_others_refused(tmp_path: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", "val")
    config = settings.config()
    StaticAgent(SubnetConfig.min(config.space), config).save(tmp_path / "static.json")
    assert type(load_agent(str(tmp_path / "static.json"), settings)).__name__ == "StaticAgent"
    assert type(load_agent("random", settings)).__name__ == "RandomAgent"
    with pytest.raises(FileNotFoundError, match="'ful' is no agent"):
        load_agent("ful", settings)
    other = replace(config, num_classes=11)
    StaticAgent(SubnetConfig.min(config.space), other).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match="another supernet"):
        load_agent(str(tmp_path / "other.json"), settings)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="not a baseline"):
        load_agent(str(tmp_path / "bad.json"), settings)
