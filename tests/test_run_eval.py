"""`prance eval` as a whole: files that agree with each other, controls, and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import FixedSettings, make_engine, settings_for

from agents.baselines import BaselineAgent, FullAgent
from prance_env import InferenceEngine
from prance_env.spaces import observation_layout
from supernet import Supernet
from train import run_eval as runner
from train.rows import read_rows
from train.run_eval import EvalSettings, file_names, run_eval

IMAGES = 48
SHORT = EvalSettings(resamples=50, controls=True)


class Confident(BaselineAgent):
    """All patches where the class token's first entry is positive, the fewest elsewhere."""

    def act(self, decision: Any) -> Any:
        raise NotImplementedError

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False):  # type: ignore[no-untyped-def]
        token = observation[:, observation_layout(self.config, "cls")["class_token"]]
        actions = np.ones((len(observation), self.config.space.action_size), dtype=np.float32)
        actions[:, -1] = np.where(token[:, 0] > 0, 1, -1)
        return actions, None


@pytest.fixture
def engine(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> InferenceEngine:
    """Noise before a random supernet, which every settings of the runner lead to."""
    engine = make_engine(digits_net, IMAGES)
    load = runner.load_agent

    def load_agent(name: str, settings: FixedSettings, seed: int) -> Any:
        return Confident(engine.config) if name == "looking" else load(name, settings, seed)

    monkeypatch.setattr(runner, "load_agent", load_agent)
    monkeypatch.setattr(runner.EnvSettings, "from_id", lambda *a, **k: settings_for(engine))
    return engine


def test_controls_are_added_for_agents_that_look(engine: InferenceEngine, tmp_path: Path) -> None:
    metrics = run_eval(["full", "looking", "looking"], SHORT, tmp_path)
    assert list(metrics) == ["full", "looking", "looking (shuffled)", "looking (mean action)"]
    assert metrics["looking (shuffled)"]["macs_fraction"] == pytest.approx(metrics["looking"]["macs_fraction"])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    comparisons = json.loads((tmp_path / "comparisons.json").read_text())
    assert len(comparisons) == 6
    found = comparisons["looking - looking (shuffled)"]
    assert found["accuracy"] == pytest.approx(
        metrics["looking"]["accuracy"] - metrics["looking (shuffled)"]["accuracy"]
    )
    rows = read_rows(tmp_path / "looking-shuffled.csv")
    assert rows["correct"].mean() == metrics["looking (shuffled)"]["accuracy"]
    assert len(np.unique(read_rows(tmp_path / "looking-mean-action.csv")["macs"])) == 1
    assert json.loads((tmp_path / "settings.json").read_text())["split"] == "test"


def test_agents_of_one_name_get_files_of_their_own() -> None:
    names = ["full", "runs/a/model", "runs/b/model", "runs/b", "./runs/b (mean action)"]
    expected = ["full", "runs_a_model", "runs_b_model", "b", "b-mean-action"]
    assert file_names(names) == dict(zip(names, expected, strict=True))


def test_trained_agents_bring_their_supernet_and_must_agree_on_it(
    engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    for name, checkpoint in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_text(yaml.safe_dump({"checkpoint": checkpoint, "observation": "cls"}))
    monkeypatch.setattr(runner, "load_agent", lambda *a: FullAgent(engine.config))
    monkeypatch.setattr(runner.EnvSettings, "from_id", lambda *a, **k: asked.append(a[2]) or settings_for(engine))
    a, b, c = (str(tmp_path / name) for name in "abc")
    run_eval(["full", a, c], EvalSettings(resamples=5))
    assert asked == ["one"] * 3
    with pytest.raises(ValueError, match=r"different values of checkpoint.*--checkpoint"):
        run_eval([a, b], EvalSettings(resamples=5))
    run_eval([a, b], EvalSettings(resamples=5, checkpoint="three"))
    assert asked[3:] == ["three"] * 2
