"""Agent training and loading: reproducible, resumable, refusing what does not fit."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_equal_policies
from safetensors.torch import load_file

from agents import PrancePPO, PranceSelector, StaticAgent, load_prance_selector
from prance_env.settings import EnvSettings
from supernet import SubnetConfig
from train.evaluate import evaluate
from train.policies import train_prance_ppo, train_sb3
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.policies.train_prance_ppo import fitted_config
from train.runs.folder import read_config
from train.runs.progress import read_progress

pytestmark = pytest.mark.usefixtures("few_scenes")

TINY = AgentTraining(n_envs=64, total_timesteps=64 * 6 * 5)
TINY_PRANCE = AgentTraining(algo="prance_ppo", n_envs=64, total_timesteps=64 * 24 * 5)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (train_sb3, train_prance_ppo):
        monkeypatch.setattr(stage, "ROLLOUTS_PER_STRETCH", 2)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PrancePPO that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_prance_ppo, "ROLLOUTS_PER_STRETCH", 2)
        train_agent(TINY_PRANCE, folder, progress_bar=False)
    return folder


@pytest.mark.slow
def test_an_agent_that_was_stopped_anywhere_goes_on_as_if_it_had_not(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, update = tmp_path / "run", PrancePPO._update

    def stop_at(n_updates: int, how: str) -> None:
        def stopping(self: PrancePPO, rollout: Any) -> dict[str, float]:
            if self.n_updates == n_updates:
                if how == "kill":
                    raise MemoryError
                signal.raise_signal(signal.SIGINT)
            return update(self, rollout)

        monkeypatch.setattr(PrancePPO, "_update", stopping)

    stop_at(1, "kill")
    with pytest.raises(MemoryError):
        train_agent(TINY_PRANCE, out, progress_bar=False)
    assert not (out / "last").exists()
    stop_at(2, "kill")  # there was no checkpoint: it starts over
    with pytest.raises(MemoryError):
        train_agent(TINY_PRANCE, out, resume=True, progress_bar=False, save_freq=0)
    assert PrancePPO.load(out / "last").n_updates == 2
    stop_at(2, "Ctrl-C")
    with pytest.raises(KeyboardInterrupt):
        train_agent(TINY_PRANCE, out, resume=True, progress_bar=False)
    assert PrancePPO.load(out / "last").n_updates == 3
    assert not (out / "model").exists()
    monkeypatch.setattr(PrancePPO, "_update", update)
    resumed = train_agent(TINY_PRANCE, out, resume=True, progress_bar=False)
    assert_equal_policies(PrancePPO.load(whole_run / "model"), resumed)
    for name in ("metrics.jsonl", "model/config.json", "model/model.safetensors", "last/model.safetensors"):
        assert (whole_run / name).read_bytes() == (out / name).read_bytes()
    assert [folder.name for folder in out.glob("prance_ppo_*")] == ["prance_ppo_1"]
    rows = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [r["timesteps"] for r in rows] == [64 * 24 * n for n in range(1, 6)]
    assert {"accuracy", "macs_fraction"} < set(rows[0])


@pytest.mark.parametrize("algo", ["prance_ppo", "ppo"])
def test_a_run_goes_on_on_another_machine(algo: str, tmp_path: Path) -> None:
    settings, here, there = (
        AgentTraining(algo=algo, n_envs=4, total_timesteps=24),
        tmp_path / "here",
        tmp_path / "there",
    )
    train_agent(settings, here, progress_bar=False)
    shutil.copytree(here, there)
    other: Any = {"cache_mb": 1, "cache_dir": str(tmp_path / "cache"), "num_workers": 2, "device": "cpu:0"}
    longer = replace(settings, total_timesteps=48)
    agents = [
        train_agent(replace(longer, environment=environment), run, resume=True, progress_bar=False)
        for run, environment in ((here, {}), (there, other))
    ]
    assert_equal_policies(*agents)
    assert (here / "metrics.jsonl").read_bytes() == (there / "metrics.jsonl").read_bytes()
    assert {k: v for k, v in read_config(there).items() if k in other} == other


def test_rollouts_of_prance_ppo_are_whole_episodes_of_as_many_images_as_the_preset_has() -> None:
    default = fitted_config("tuned", None, 3)
    assert default.n_steps == 3
    for n_envs, decisions in ((64, 3), (100, 4), (10_000, 5)):
        config = fitted_config("tuned", n_envs, decisions)
        assert config.n_steps % decisions == 0
        size = default.n_envs * default.n_steps
        assert abs(n_envs * config.n_steps - size) <= max(n_envs * decisions / 2, n_envs * decisions - size)
    paper = fitted_config("paper", None, 3)
    assert (paper.gamma, paper.hidden) == (0.9, (256, 256))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": "dqn"}, "algo='dqn'.*'ppo', 'prance_ppo'"),
        ({"algo": "prance_ppo", "preset": "best"}, "preset='best'.*'paper', 'tuned'"),
        ({"algo": "ppo", "preset": "paper"}, "preset='paper' is unknown to ppo"),
    ],
)
def test_unknown_algorithms_and_presets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentTraining(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [TINY, TINY_PRANCE], ids=["ppo", "prance_ppo"])
def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path: Path, tiny: AgentTraining) -> None:
    short = replace(tiny, total_timesteps=64 * (25 if tiny is TINY_PRANCE else 13))
    train_agent(short, tmp_path / "run", progress_bar=False)
    for other in (short, TINY, TINY_PRANCE):
        with pytest.raises(FileExistsError, match="--resume"):
            train_agent(other, tmp_path / "run", progress_bar=False)
    with pytest.raises(ValueError, match="macs_weight"):
        train_agent(replace(short, macs_weight=9.0), tmp_path / "run", resume=True, progress_bar=False)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train_agent(short, tmp_path / "none", resume=True, progress_bar=False)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [TINY, TINY_PRANCE], ids=["ppo", "prance_ppo"])
def test_a_trained_agent_is_loaded_with_the_settings_it_was_trained_with_only(
    tmp_path: Path, tiny: AgentTraining
) -> None:
    train_agent(replace(tiny, observation="constant", total_timesteps=64 * 6), tmp_path / "run", progress_bar=False)
    observation = EnvSettings.from_id("Prance-Digits-v0", split="val", observation="constant")
    assert load_agent(str(tmp_path / "run"), observation) is not None
    with pytest.raises(ValueError, match="was trained with"):
        load_agent(str(tmp_path / "run"), EnvSettings.from_id("Prance-Digits-v0", split="val"))


def test_agents_are_found_by_name_and_by_file_and_others_refused(tmp_path: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", split="val")
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
    with pytest.raises(ValueError, match=r"bad\.json is no JSON file"):
        load_agent(str(tmp_path / "bad.json"), settings)


@pytest.mark.slow
def test_prance_ppo_is_loaded_from_a_run_or_a_saved_folder_and_runs_no_pickle(tmp_path: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", split="val")
    trained = train_agent(replace(TINY_PRANCE, total_timesteps=64 * 24), tmp_path / "run", progress_bar=False)
    assert isinstance(trained, PrancePPO)
    observation = np.zeros(settings.spaces()[0].shape, dtype=np.float32)
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        loaded = load_agent(str(path), settings)
        np.testing.assert_array_equal(
            loaded.predict(observation, deterministic=True)[0], trained.predict(observation, deterministic=True)[0]
        )
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not list((tmp_path / "run").rglob("*.zip"))
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        load_agent(str(tmp_path / "run"), settings)


def test_a_selector_is_loaded_from_its_own_and_the_authors_file(tmp_path: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", split="val", observation="constant")
    shapes = {"fc1": (8, 3), "fc2": (8, 8), "fc_mu": (7, 8)}
    generator = torch.Generator().manual_seed(0)
    weights = {f"{k}.weight": torch.randn(s, generator=generator) for k, s in shapes.items()}
    weights |= {f"{k}.bias": torch.zeros(s[0]) for k, s in shapes.items()}
    torch.save(weights, tmp_path / "actor.pth")
    load_prance_selector(weights, normalize_actions=True).save(tmp_path / "agent.safetensors")
    load_prance_selector(weights, normalize_actions=False).save(tmp_path / "other.safetensors")
    agents = [load_agent(str(tmp_path / name), settings) for name in ("actor.pth", "agent.safetensors")]
    assert all(isinstance(agent, PranceSelector) for agent in agents)
    rows = [agent.predict(np.eye(3, dtype=np.float32), deterministic=True)[0] for agent in agents]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert evaluate(agents[0], settings).summary()["macs_fraction"] < 1
    for name, other in (("other.safetensors", settings), ("actor.pth", EnvSettings.from_id(split="val"))):
        with pytest.raises(ValueError, match="trained for observations"):
            load_agent(str(tmp_path / name), other)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [TINY, TINY_PRANCE], ids=["ppo", "prance_ppo"])
def test_a_finished_run_is_extended_and_says_so_if_there_is_nothing_to_do(
    tmp_path: Path, tiny: AgentTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    out, total = tmp_path / "run", tiny.timesteps
    short = replace(tiny, total_timesteps=total * 2 // 5)
    done = train_agent(short, out, progress_bar=False)
    again = train_agent(short, out, resume=True, progress_bar=False)
    assert_equal_policies(done, again)
    assert f"has {short.total_timesteps} of {short.total_timesteps} steps already" in capsys.readouterr().out
    longer: Any = train_agent(tiny, out, resume=True, progress_bar=False)
    assert longer.num_timesteps == total
    steps = [json.loads(line)["timesteps"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted({*steps})
    assert steps[-1] == total
    progress = read_progress(out)
    assert (progress["step"], progress["total"]) == (total, total)
    loaded = load_agent(str(out), EnvSettings.from_id(split="val"))
    assert_equal_policies(longer, loaded)
    assert len([*out.glob("ppo_*"), *out.glob("prance_ppo_*")]) == 1
