"""`prance bench-training` compares trainings of the same length and seed, and judges policies on whole splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_engine, settings_for

from agents.baselines import FullAgent
from prance_env import InferenceEngine
from prance_env.settings import EnvSettings
from supernet import Supernet
from train.commands.main import main
from train.evaluate import evaluate
from train.policies.settings import AgentTraining, TrainingTask
from train.timing import training as bench
from train.timing.training import TrainingBenchSettings, play_split, run_bench_training, summarise_training

SHORT: dict[str, Any] = {"n_envs": 256, "total_timesteps": 192}


class Looking:
    """As many patches as the class token says."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False):  # type: ignore[no-untyped-def]
        assert deterministic
        actions = np.ones((len(observation), 7), dtype=np.float32)
        actions[:, -1] = np.tanh(observation[:, 0])
        return actions, None


@pytest.fixture
def engine(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> InferenceEngine:
    """Few images before a random supernet, which every environment finds."""
    engine = make_engine(digits_net, 40)
    monkeypatch.setattr(EnvSettings, "engine", lambda self: engine)
    monkeypatch.setattr(EnvSettings, "config", lambda self: engine.config)
    return engine


@pytest.mark.parametrize("batch", [16, 40, 64])
def test_every_image_of_a_split_is_played_once_whatever_the_batch_size(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(bench, "BATCH", batch)
    found = play_split(Looking(), TrainingTask(macs_weight=0.3), "val")
    expected = evaluate(Looking(), settings_for(engine))
    assert 0.3 < found["macs_fraction"] < 0.95
    assert found["macs_fraction"] == pytest.approx(expected.macs_fraction.mean())
    assert found["accuracy"] == pytest.approx(expected.correct.mean())


def test_returns_are_those_of_the_rewards_of_the_training(engine: InferenceEngine) -> None:
    for price in (0.1, 0.3):
        full = play_split(FullAgent(engine.config), TrainingTask(macs_weight=price), "val")
        assert full["return"] == pytest.approx(1 - price)  # it agrees with itself, at the full price
    assert full["macs_fraction"] == 1


def test_summaries_are_means_of_returns_and_medians_of_ratios_between_neighbours() -> None:
    rows = []
    for seed, slow in ((0, 1.0), (1, 1.0), (2, 10.0)):  # the machine got slower
        for algo, speed, value in (("a", 10, 0.5 + seed), ("b", 15, 0.7 + 2 * seed), ("c", 5, 0.0)):
            one = {"algo": algo, "seed": seed, "return": value, "accuracy": 0.9, "macs_fraction": 0.1 * seed}
            rows.append({**one, "decisions_per_second": speed / slow, "decisions_per_cpu_second": speed})
    found = summarise_training(rows, ("a", "b", "c"))
    assert list(found) == ["a", "b", "c"]
    assert found["a"]["return_gain"] == 0
    assert found["b"]["return"] == pytest.approx(2.7)
    assert found["b"]["return_gain"] == pytest.approx(1.2)
    assert found["b"]["macs_fraction"] == pytest.approx(0.1)
    assert [found[a]["decisions_per_second_ratio"] for a in "abc"] == pytest.approx([1, 1.5, 0.5])
    assert [found[a]["decisions_per_second"] for a in "abc"] == [10, 15, 5]


@pytest.mark.slow
def test_every_algorithm_trains_with_every_seed_in_turns_and_the_figures_are_written(
    engine: InferenceEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    train = bench.train_agent

    def note(settings: AgentTraining, *rest: Any, **named: Any) -> Any:
        trained.append((settings.algo, settings.seed))
        return train(settings, *rest, **named)

    monkeypatch.setattr(bench, "train_agent", note)
    monkeypatch.setattr(bench, "play_split", lambda *a: {"return": 0.5, "accuracy": 0.9, "macs_fraction": 0.4})
    result = run_bench_training(TrainingBenchSettings(**SHORT, seeds=(0, 1)), tmp_path / "bench.json")
    assert trained == [("ppo", 0), ("prance_ppo", 0), ("prance_ppo", 1), ("ppo", 1)]
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(result))
    for row in result["rows"]:
        assert row["decisions"] >= SHORT["total_timesteps"]
        assert row["decisions_per_second"] == row["decisions"] / row["seconds"]
    out = capsys.readouterr().out
    assert "1.3 times its speed" in out
    assert "met     return of prance_ppo not below ppo's" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algos": ("ppo",)}, "two or more"),
        ({"algos": ("ppo", "ppo")}, "two or more"),
        ({"algos": ("ppo", "dqn")}, "algo='dqn'"),
        ({"seeds": ()}, "seeds="),
        ({"macs_weight": (0.01, 0.3)}, "must be one price"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingBenchSettings(**{**SHORT, **changes})


def test_the_command_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainingBenchSettings] = []
    monkeypatch.setattr("train.commands.bench_training.run_bench_training", lambda settings, out: seen.append(settings))
    arguments = "--algos prance_ppo ppo --seeds 4 5 --total-timesteps 7 --macs-weight 0.1 --n-envs 9 --split test"
    monkeypatch.setattr("sys.argv", ["prance", "bench-training", *arguments.split()])
    main()
    task: dict[str, Any] = {"total_timesteps": 7, "macs_weight": 0.1, "n_envs": 9}
    assert seen == [TrainingBenchSettings(**task, algos=("prance_ppo", "ppo"), seeds=(4, 5), split="test")]
