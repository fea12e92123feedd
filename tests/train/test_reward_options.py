"""Rewards and modules of users on the command line, and what run folders note of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command_line import prance, refusal

from prance_env import EnvSettings
from prance_env.rewards.config import RewardConfig
from prance_env.rewards.measuring import measure_latency_table
from prance_env.rewards.outcome import REWARDS
from supernet import supernet_config
from train.policies.settings import AgentTraining
from train.policies.tune import TuneSettings

pytestmark = pytest.mark.usefixtures("few_scenes")

MODULE = """
from prance_env.rewards.outcome import register_reward

@register_reward("of_a_user")
def frugal(outcome):
    return outcome.accuracy - outcome.macs_weight * (outcome.macs / outcome.full_macs) ** 2
"""
SHORT = ("--algo", "a2c", "--n-envs", "8", "--total-timesteps", "120")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the present folder, which nobody has imported."""
    (tmp_path / "my_rewards_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_rewards_of_a_test"
    sys.modules.pop("my_rewards_of_a_test", None)
    REWARDS.remove("of_a_user")


def reward_of(folder: Path, **also: object) -> dict[str, object]:
    noted = yaml.safe_load((folder / "config.yml").read_text())
    return {k: noted[k] for k in ("reward", "macs_weight", "latency_table", "reward_terms", *also)}


def test_the_usual_reward_is_as_it_was() -> None:
    task = AgentTraining()
    assert task.reward_arguments == {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05}
    ranged = AgentTraining(macs_weight=(0.01, 0.3))
    assert ranged.reward_arguments == {"mode": "potential", "accuracy": "mixed"}


@pytest.mark.parametrize("how", [{"reward": "paper"}, {"preset": "paper", "algo": "prance_ppo"}])
def test_the_papers_reward_comes_with_its_price(how: dict[str, str]) -> None:
    task = AgentTraining(**how)  # type: ignore[arg-type]
    config = EnvSettings.from_arguments({**EnvSettings.check_id(task.env), **task.env_arguments}).reward_config
    assert config == RewardConfig.paper("digits")
    assert AgentTraining(**how, macs_weight=0.2).reward_arguments["macs_weight"] == 0.2  # type: ignore[arg-type]
    assert AgentTraining(algo="prance_ppo", preset="paper", reward="potential").macs_weight == 0.05


def test_searches_take_rewards_as_trainings_do() -> None:
    settings = TuneSettings(algo="ppo", reward="paper", reward_terms={"token_weight": 0.3})
    assert settings.reward_arguments["token_weight"] == 0.3
    assert settings.macs_weight == RewardConfig.paper("digits").macs_weight


@pytest.mark.slow
def test_terms_and_milliseconds_are_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "latency.json"
    measured = measure_latency_table(supernet_config("digits"), batch_size=2, num_token_counts=2, repeats=1)
    measured.save(table)
    monkeypatch.chdir(tmp_path)
    options = ("--latency-table", "latency.json", "--macs-weight", "0.2", "--reward.mode", "terminal")
    prance(monkeypatch, "train", "agent", "--out", "run", *SHORT, *options)
    assert reward_of(tmp_path / "run") == {
        "reward": None,
        "macs_weight": 0.2,
        "latency_table": str(table),
        "reward_terms": {"mode": "terminal"},
    }
    prance(monkeypatch, "eval", "--agent", "run", "full", "--split", "val", "--resamples", "5", "--out", "eval")
    full = json.loads((tmp_path / "eval" / "metrics.json").read_text())["full"]
    assert full["reward"]["cost"] == "latency"
    assert full["return"] == pytest.approx(1 - 0.2)
    words = refusal(monkeypatch, "train", "agent", "--out", "run", "--resume", "--reward.mode", "potential")
    assert "reward_terms={'mode': 'potential'} instead of {'mode': 'terminal'}" in words
    prance(monkeypatch, "train", "agent", "--out", "run", "--resume")


@pytest.mark.slow
def test_a_reward_of_a_users_module_trains_judges_and_goes_on_when_it_is_imported(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'potential'" in refusal(monkeypatch, "train", "agent", "--out", "run", "--reward", "of_a_user")
    own = ("--import", module)
    prance(monkeypatch, "train", "agent", "--out", "run", *SHORT, *own, "--reward", "of_a_user")
    prance(monkeypatch, "eval", "--agent", "run", "full", "--split", "val", "--resamples", "5", "--out", "eval", *own)
    full = json.loads((tmp_path / "eval" / "metrics.json").read_text())["full"]
    assert full["reward"]["function"] == "of_a_user"
    assert full["return"] == pytest.approx(1 - 0.05)
    prance(monkeypatch, "train", "agent", "--out", "run", "--resume", "--total-timesteps", "240", *own)


@pytest.mark.slow
def test_no_folder_has_a_module_imported(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--import", module, "--reward.function", f"{module}:frugal")
    prance(monkeypatch, "train", "agent", "--out", "run", *SHORT, *own)
    del sys.modules[module]
    REWARDS.remove("of_a_user")
    prance(monkeypatch, "eval", "--agent", "run", "--split", "val", "--resamples", "5", "--out", "eval")
    assert f"--import {module}" in " ".join(capsys.readouterr().out.split())
    assert "return" not in json.loads((tmp_path / "eval" / "metrics.json").read_text())["run"]
    assert f"--import {module}" in refusal(monkeypatch, "train", "agent", "--out", "run", "--resume")
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("written", "words"),
    [("import nothing_of_the_kind", "No module named"), ("1 / 0", "ZeroDivisionError"), (None, "no such module")],
)
def test_modules_that_fail_are_named(
    written: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"failing_module_{len(words)}"
    if written is not None:
        (tmp_path / f"{name}.py").write_text(written)
    said = refusal(monkeypatch, "eval", "--agent", "full", "--import", name)
    assert said.startswith(f"prance: --import {name}")
    assert words in said
