"""`prance train agent` with Stable-Baselines3's other algorithms: resumed bit for bit, evaluated, refused."""

from __future__ import annotations

import copy
import json
import signal
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import assert_equal_policies, random_net
from noise_envs import TINY, noise_kwargs
from sb3_envs import envs, installed
from stable_baselines3.common import base_class

from agents import make_sb3
from agents.sb3.checkpoint import load_checkpoint, save_checkpoint, save_model
from agents.sb3.hyperparams import read_preset
from agents.sb3.place import go_to, place_of
from prance_env.settings import EnvSettings
from train.policies import train_sb3 as stage
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs.curves import read_curves
from train.runs.progress import read_progress

pytestmark = pytest.mark.usefixtures("few_scenes")

N = 16


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings of a short training whose replay buffer overflows, with short stretches."""
    monkeypatch.setattr(stage, "ROLLOUTS_PER_STRETCH", 3)
    monkeypatch.setattr(stage, "OFF_POLICY_EPISODES", 2)

    def make(algo: str, **more: Any) -> AgentTraining:
        entry = {"n_envs": N, "n_timesteps": N * 60, "policy": "MlpPolicy", **read_preset(installed(algo)).hyperparams}
        if "buffer_size" in entry:
            entry |= {"buffer_size": N * 32, "learning_starts": N * 9, "gradient_steps": 1, "batch_size": 32}
        else:
            entry |= {"n_steps": 6}
        if "batch_size" in entry:
            entry["batch_size"] = 32
        path = tmp_path / f"{algo}.yml"
        path.write_text(yaml.safe_dump({"default": {**entry, **more}}))
        return AgentTraining(algo=algo, conf_file=str(path))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_tensorboard_shows_at_every_step_what_the_metrics_say(algo: str, quick: Any, tmp_path: Path) -> None:
    train_agent(quick(algo), tmp_path / "run", progress_bar=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    curves = read_curves(tmp_path / "run")
    assert len(rows) > 3
    for name in ("accuracy", "macs_fraction"):
        steps, values = curves[f"rollout/{name}"]
        assert steps.tolist() == [row["timesteps"] for row in rows]
        np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-6)
    assert len({row["macs_fraction"] for row in rows}) > 1


@pytest.mark.parametrize(("decide_first_group", "train_freq", "every"), [(True, 1, 8), (False, 4, 12), (False, 7, 21)])
def test_rows_are_those_of_tensorboard_however_long_episodes_and_rollouts_are(
    decide_first_group: bool, train_freq: int, every: int, quick: Any, tmp_path: Path
) -> None:
    environment = {**noise_kwargs(random_net(TINY), tmp_path), "decide_first_group": decide_first_group}
    settings = replace(quick("sac", train_freq=train_freq), environment=environment)
    train_agent(settings, tmp_path / "run", progress_bar=False)
    rows = [json.loads(line)["timesteps"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [N * step for step in range(every, 64, every)]
    for name in ("ep_rew_mean", "accuracy", "macs_fraction"):
        assert read_curves(tmp_path / "run")[f"rollout/{name}"][0].tolist() == rows


def stop_at(step: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or what kills, at a step; once."""
    on_step = stage.Checkpoints._on_step

    def stopping(self: stage.Checkpoints) -> bool:
        if self.num_timesteps > N * step:
            monkeypatch.setattr(stage.Checkpoints, "_on_step", on_step)
            if how == "kill":
                raise MemoryError
            signal.raise_signal(signal.SIGINT)
        return on_step(self)

    monkeypatch.setattr(stage.Checkpoints, "_on_step", stopping)


def assert_equal_runs(whole: Any, resumed: Any, folders: tuple[Path, Path]) -> None:
    """Policies, transitions, logged rows."""
    assert_equal_policies(whole, resumed)
    if hasattr(whole, "replay_buffer"):
        assert whole.replay_buffer.full
        for name in ("observations", "actions", "rewards", "dones"):
            np.testing.assert_array_equal(getattr(whole.replay_buffer, name), getattr(resumed.replay_buffer, name))
    whole_rows, resumed_rows = ((folder / "metrics.jsonl").read_text() for folder in folders)
    assert whole_rows == resumed_rows
    assert [json.loads(row)["timesteps"] for row in whole_rows.splitlines()] == [N * 6 * n for n in range(1, 11)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("ppo", {}),
        ("ppo", {"use_sde": True}),
        ("a2c", {}),
        ("trpo", {}),
        ("sac", {}),
        ("sac", {"learning_starts": N * 30}),
        ("sac", {"use_sde": True, "use_sde_at_warmup": True}),
        ("td3", {}),
        ("tqc", {}),
    ],
    ids=["ppo", "ppo-sde", "a2c", "trpo", "sac", "sac-still-at-random", "sac-sde", "td3", "tqc"],
)
def test_a_run_that_was_stopped_anywhere_and_resumed_equals_an_uninterrupted_one(
    algo: str, more: dict[str, Any], quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, whole, parts = quick(algo, **more), tmp_path / "whole", tmp_path / "parts"
    trained: Any = train_agent(settings, whole, progress_bar=False)
    stop_at(7, "kill", monkeypatch)
    with pytest.raises(MemoryError):
        train_agent(settings, parts, progress_bar=False)
    stop_at(26, "kill", monkeypatch)  # there was no checkpoint: it starts over
    with pytest.raises(MemoryError):
        train_agent(settings, parts, resume=True, progress_bar=False, save_freq=0)
    stop_at(43, "Ctrl-C", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_agent(settings, parts, resume=True, progress_bar=False)
    assert N * 43 < read_progress(parts)["step"] <= N * 50
    resumed: Any = train_agent(settings, parts, resume=True, progress_bar=False)
    assert_equal_runs(trained, resumed, (whole, parts))
    assert [p.name for p in parts.glob(".*")] == [".lock"]
    assert [p.name for p in parts.glob(f"{algo}_*")] == [f"{algo}_1"]

    loaded = load_agent(str(whole), EnvSettings.from_id(split="val"))
    rows = np.random.default_rng(0).normal(size=(5, *trained.observation_space.shape)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(rows, deterministic=True)[0], trained.predict(rows, deterministic=True)[0]
    )


def test_a_checkpoint_holds_the_transitions_without_pickles_and_sb3_reads_its_own_part(tmp_path: Path) -> None:
    path, venv = tmp_path / "last.zip", envs(4)
    model: Any = make_sb3("sac", venv, seed=0, buffer_size=80, learning_starts=1000)
    for timesteps in (36, 72):
        model.learn(timesteps, reset_num_timesteps=False)
        save_checkpoint(model, path)
        loaded: Any = load_checkpoint(type(model), path, envs(4))
        buffer, other = model.replay_buffer, loaded.replay_buffer
        assert (other.pos, other.full) == (buffer.pos, buffer.full)
        assert buffer.full == (timesteps == 72)
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            np.testing.assert_array_equal(getattr(other, name), getattr(buffer, name))
    assert type(model).load(path).num_timesteps == model.num_timesteps
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("replay_buffer/"):
                with archive.open(name) as f:
                    np.lib.format.read_array(f, allow_pickle=False)

    with pytest.raises(ValueError, match=r"last\.zip: observations has shape \(20, 4, 76\)"):
        load_checkpoint(type(model), path, envs(8))
    save_model(model, path)
    with pytest.raises(ValueError, match="holds no transitions"):
        load_checkpoint(type(model), path, envs(4))


def test_a_place_stays_as_it_is_when_one_has_gone_there() -> None:
    model = make_sb3("a2c", envs(4), seed=0, n_steps=4, use_sde=True).learn(16)
    place = place_of(model)
    before = copy.deepcopy(place)
    go_to(model, place)
    model.learn(16, reset_num_timesteps=False)
    assert place["environment"]["monitor"]["lengths"].any()
    for name in ("observations", "episode_starts"):
        assert torch.equal(place[name], before[name]), name
    for name in ("returns", "lengths"):
        assert torch.equal(place["environment"]["monitor"][name], before["environment"]["monitor"][name]), name
    for name, value in before["noise"].items():
        assert torch.equal(place["noise"][name], value), name


def test_a_buffer_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    model = make_sb3(
        "sac", envs(4), replay_buffer_kwargs={"handle_timeout_termination": False}, optimize_memory_usage=True
    )
    with pytest.raises(ValueError, match="ReplayBuffer cannot be saved"):
        save_checkpoint(model, tmp_path / "last.zip")


def test_the_preset_says_how_long_to_train_unless_one_says_otherwise(tmp_path: Path) -> None:
    assert AgentTraining(algo="sac").timesteps == read_preset("sac").n_timesteps
    assert AgentTraining(algo="prance_ppo").timesteps == 400_000
    assert AgentTraining(algo="sac", total_timesteps=7).timesteps == 7
    path = tmp_path / "mine.yml"
    path.write_text("default: {n_envs: 4, n_timesteps: 123, batch_size: 8}")
    assert AgentTraining(algo="sac", conf_file=str(path)).timesteps == 123
    with pytest.raises(ValueError, match=r"conf_file='mine\.yml' is for SB3's"):
        AgentTraining(algo="prance_ppo", conf_file="mine.yml")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        AgentTraining(algo="sac", conf_file=str(tmp_path / "nowhere.yml"))
    path.write_text("default: {n_envs: 4, n_timesteps: 123, clip_range: 8}")
    with pytest.raises(ValueError, match=r"mine\.yml: SAC takes no \['clip_range'\]"):
        AgentTraining(algo="sac", conf_file=str(path))


def test_a_preset_for_another_environment_is_refused_unless_this_run_has_it(tmp_path: Path) -> None:
    reward = {"macs_weight": 0.3}
    file = tmp_path / "ppo.yml"
    entry = {"n_envs": 4, "n_timesteps": 64, "policy": "MlpPolicy", "n_steps": 4, "batch_size": 16}
    file.write_text(yaml.safe_dump({"default": {**entry, "env_kwargs": {"reward": reward}}}))
    with pytest.raises(ValueError, match=r"env_kwargs has reward=\{'macs_weight': 0.3\}, but this run has .*0\.05"):
        AgentTraining(conf_file=str(file), macs_weight=0.05)
    assert AgentTraining(conf_file=str(file), macs_weight=0.3).timesteps == 64
    file.write_text(yaml.safe_dump({"default": {**entry, "env_kwargs": {"observation": "constant"}}}))
    with pytest.raises(ValueError, match=r"observation='constant', but this run has 'cls'.*take \['observation'\] out"):
        AgentTraining(conf_file=str(file))


def test_a_run_that_has_moved_goes_on_on_the_cpu_and_shows_its_curves_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AgentTraining(algo="ppo", n_envs=4, total_timesteps=24)
    train_agent(settings, tmp_path / "old", progress_bar=False)
    (tmp_path / "old").rename(tmp_path / "new")
    asked: list[Any] = []
    monkeypatch.setattr(base_class, "get_device", lambda device="auto": asked.append(device) or torch.device("cpu"))
    longer = replace(settings, total_timesteps=48)
    train_agent(longer, tmp_path / "new", resume=True, progress_bar=False)
    assert {*asked} == {"cpu"}  # "auto" is a GPU wherever there is one
    assert not (tmp_path / "old").exists()
    assert read_curves(tmp_path / "new")["rollout/accuracy"][0].tolist() == [24, 48]
