"""Algorithms that users register: trained, saved, resumed and loaded as this package's own are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import prance

from prance_env import PranceVectorEnv
from prance_env.settings import EnvSettings
from train.evaluate import evaluate
from train.policies.algorithm import Algorithm, TrainingRun
from train.policies.load_agent import load_agent
from train.policies.registry import ALGORITHMS, register_algorithm
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent

EVERY = 16


class Constant:
    """The same action for all images."""

    def __init__(self, action: float, num_timesteps: int) -> None:
        self.action, self.num_timesteps = action, num_timesteps

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        return np.full((len(observation), 7), self.action, dtype=np.float32), None


class Drift(Algorithm):
    """Lets one number drift, and is interrupted when it is told to."""

    suffix = ".json"
    stop_at: int | None = None

    def timesteps(self, conf_file: str | None, env: str) -> int:
        return 3 * EVERY

    def train(self, run: TrainingRun) -> Constant:
        assert run.env_settings().observation == "constant"
        PranceVectorEnv(2, **run.env_kwargs())
        agent = self.load(run.last) if run.resume else Constant(0.0, 0)
        if run.resume:
            run.forget_after(agent.num_timesteps)
        while agent.num_timesteps < run.total_timesteps:
            if agent.num_timesteps == self.stop_at:
                raise KeyboardInterrupt
            rng = np.random.default_rng([run.seed, agent.num_timesteps])
            agent = Constant(agent.action + rng.uniform(-0.1, 0.1), agent.num_timesteps + EVERY)
            run.write_row(agent.num_timesteps, accuracy=1.0, macs_fraction=agent.action)
            self.save(agent, run.last)
        self.save(agent, run.model)
        return agent

    def save(self, agent: Constant, path: Path) -> None:
        path.write_text(json.dumps([agent.action, agent.num_timesteps]))

    def load(self, path: Path) -> Constant:
        return Constant(*json.loads(path.read_text()))


@pytest.fixture
def drift() -> Iterator[Drift]:
    algorithm = Drift()
    register_algorithm("drift", algorithm)
    yield algorithm
    ALGORITHMS.remove("drift")


def test_an_algorithm_of_a_user_trains_resumes_and_loads_like_ours(drift: Drift, tmp_path: Path) -> None:
    settings = AgentTraining(algo="drift", observation="constant", seed=3)
    whole = train_agent(settings, tmp_path / "whole")
    drift.stop_at = EVERY
    with pytest.raises(KeyboardInterrupt):
        train_agent(settings, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.json").exists()
    with pytest.raises(FileExistsError, match="holds a run already"):
        train_agent(settings, tmp_path / "parts")
    with pytest.raises(ValueError, match=r"other values of \['seed'\]"):
        train_agent(AgentTraining(algo="drift", observation="constant"), tmp_path / "parts", resume=True)
    drift.stop_at = None
    resumed = train_agent(settings, tmp_path / "parts", resume=True)
    assert isinstance(whole, Constant)
    assert isinstance(resumed, Constant)
    assert (resumed.action, resumed.num_timesteps) == (whole.action, 3 * EVERY)
    for name in ("metrics.jsonl", "model.json", "config.yml"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()

    env = EnvSettings.from_id(split="val", observation="constant")
    loaded = load_agent(str(tmp_path / "parts"), env)
    assert isinstance(loaded, Constant)
    assert loaded.action == whole.action


@pytest.mark.slow
def test_it_trains_and_is_evaluated_from_the_command_line(
    drift: Drift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    options = ("--algo", "drift", "--observation", "constant", "--device", "cpu", "--threads", "0")
    prance(monkeypatch, "train", "agent", "--out", run, *options)
    prance(monkeypatch, "eval", "--agent", run, "--split", "val", "--out", f"{run}/eval")
    metrics = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    env = EnvSettings.from_id(split="val", observation="constant")
    expected = evaluate(load_agent(run, env), env).summary()
    assert metrics[run]["macs_fraction"] == expected["macs_fraction"]


def test_a_class_is_registered_by_a_decorator_and_names_are_given_once() -> None:
    try:
        decorated = register_algorithm("decorated")(Drift)
        assert decorated is Drift
        assert isinstance(ALGORITHMS["decorated"], Drift)
        assert AgentTraining(algo="decorated").timesteps == 3 * EVERY
        with pytest.raises(ValueError, match="'ppo' is taken"):
            register_algorithm("ppo", Drift())
    finally:
        ALGORITHMS.remove("decorated")
    with pytest.raises(ValueError, match=r"algo='decorated' is unknown.*register_algorithm"):
        AgentTraining(algo="decorated")


def test_what_an_algorithm_does_not_take_is_refused(drift: Drift) -> None:
    with pytest.raises(ValueError, match=r"conf_file='mine\.yml' is for SB3's algorithms; drift takes preset="):
        AgentTraining(algo="drift", conf_file="mine.yml")
    with pytest.raises(ValueError, match="preset='paper' is unknown to drift; prance_ppo has"):
        AgentTraining(algo="drift", preset="paper")
