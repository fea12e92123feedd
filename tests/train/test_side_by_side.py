"""`prance eval` as a whole: files that agree with each other, controls, and names."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from adaptive_models import prance_ppo
from conftest import scenes
from filelock import FileLock
from helpers import FixedSettings, make_engine, settings_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from agents import AdaptiveViT
from agents.baselines import BaselineAgent, FullAgent
from agents.fitting import Interface
from prance_env import EnvSettings, InferenceEngine
from prance_env.spaces import observation_layout
from supernet import SubnetConfig, Supernet
from train import side_by_side as runner
from train.evaluate import evaluate
from train.evaluate.rows import read_rows
from train.report.curves import plot_learning_curves
from train.runs import lock
from train.runs.curves import forget_curves_after, read_curves
from train.side_by_side import EvalSettings, file_names, run_eval
from train.timing.agents import images_to_time
from train.yardsticks import headroom

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


class Unmoved(Confident):
    """Everything, whatever it sees."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False):  # type: ignore[no-untyped-def]
        return np.ones((len(observation), self.config.space.action_size), dtype=np.float32), None


@pytest.fixture
def engine(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> InferenceEngine:
    """Noise before a random supernet, which every settings of the runner lead to."""
    engine = make_engine(digits_net, IMAGES)
    load = runner.load_agent

    def load_agent(name: str, settings: FixedSettings, seed: int, trust: bool) -> Any:
        return Confident(engine.config) if name == "looking" else load(name, settings, seed, trust)

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
    assert (tmp_path / "choices.png").stat().st_size > 1000
    assert not (tmp_path / "learning.png").exists()


def test_another_evaluation_leaves_nothing_of_the_earlier_one(engine: InferenceEngine, tmp_path: Path) -> None:
    run_eval(["full", "looking"], SHORT, tmp_path)
    (tmp_path / "mine.csv").write_text("mine")
    run_eval(["full"], SHORT, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {".lock"} == {
        *("mine.csv", "full.csv", "metrics.json", "comparisons.json", "settings.json", "pareto.png")
    }
    (tmp_path / "metrics.json").write_text("[")
    run_eval(["looking"], SHORT, tmp_path)
    assert (tmp_path / "full.csv").is_file()  # nothing says by now that it was an evaluation's


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_played(
    engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "load_agent", lambda *a: pytest.fail("played"))
    monkeypatch.setattr(headroom, "measure_headroom", lambda *a: pytest.fail("measured"))
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    file, busy = tmp_path / "file", tmp_path / "busy"
    file.touch()
    busy.mkdir()
    with FileLock(busy / lock.LOCK):
        for out, words in ((file, "file"), (busy, "Another process writes to")):
            with pytest.raises(FileExistsError, match=words):
                run_eval(["full"], SHORT, out)
            with pytest.raises(FileExistsError, match=words):
                headroom.run_headroom(headroom.HeadroomSettings(), out)
    with pytest.raises(BaseException, match="played"):
        run_eval(["full"], SHORT, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_agent_that_sees_a_constant_needs_no_controls(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.EnvSettings, "from_id", lambda *a, **k: settings_for(engine, observation="constant"))
    monkeypatch.setattr(runner, "load_agent", lambda *a: Unmoved(engine.config))
    assert list(run_eval(["blind"], SHORT)) == ["blind"]


def test_params_are_those_of_the_extracted_subnets(engine: InferenceEngine) -> None:
    result = evaluate(Confident(engine.config), settings_for(engine))
    chosen = SubnetConfig.from_actions(engine.config.space, torch.from_numpy(result.actions))
    assert [engine.net.extract(chosen[i]).params() for i in range(IMAGES)] == result.params.tolist()
    whole = evaluate(FullAgent(engine.config), settings_for(engine))
    assert whole.summary()["params_fraction"] == 1


def test_latency_is_measured_from_pixels_to_the_same_prediction(
    engine: InferenceEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, env = Confident(engine.config), settings_for(engine)
    images = engine.dataset.fetch(np.arange(IMAGES))
    logits = AdaptiveViT.from_settings(env, agent)(images).logits
    assert logits.argmax(1).tolist() == evaluate(agent, env).prediction.tolist()
    metrics = run_eval(["looking", "full"], replace(SHORT, latency=4))
    for name in ("looking", "full"):
        assert metrics[name]["latency_ms"] > 0
        assert metrics[name]["latency_fraction"] > 0
    assert "latency_ms" not in metrics["looking (shuffled)"]
    assert "ms / full" in capsys.readouterr().out
    for name in ("latency", "resamples"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            replace(SHORT, **{name: 0})


def test_images_to_time_are_spread_over_the_split(engine: InferenceEngine) -> None:
    assert torch.equal(images_to_time(engine, 3), engine.dataset.fetch(np.array([0, IMAGES // 2, IMAGES - 1])))
    few = make_engine(engine.net, 2)
    assert torch.equal(images_to_time(few, 5), few.dataset.fetch(np.array([0, 1, 0, 1, 0])))


def test_curves_are_read_back_and_resumed_ones_replace_what_they_repeat(tmp_path: Path) -> None:
    for folder, steps, value in (("ppo_1", (10, 20, 30), 1.0), ("ppo_2", (20, 30, 40), 2.0)):
        with SummaryWriter(tmp_path / folder) as writer:
            for step in steps:
                writer.add_scalar("rollout/accuracy", value, step)
                writer.add_scalar("train/loss", value, step)
        (events,) = (tmp_path / folder).iterdir()
        events = events.rename(events.with_name(f"events.out.tfevents.{1_700_000_000 + steps[0]}.my.host.7.0"))
        os.utime(events, (100 - steps[0], 100 - steps[0]))  # as a copy may have them
    curves = read_curves(tmp_path)
    assert list(curves) == ["rollout/accuracy"]
    steps, values = curves["rollout/accuracy"]
    assert steps.tolist() == [10, 20, 30, 40]
    assert values.tolist() == [1, 2, 2, 2]
    assert read_curves(tmp_path / "nothing") == {}
    plot_learning_curves({"runs/a": curves}, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").stat().st_size > 1000


def test_nothing_that_is_logged_again_is_shown_twice_whichever_folder_it_is_in(tmp_path: Path) -> None:
    for folder, steps in (("ppo_1", (10, 20)), ("ppo_2", (10, 20, 30)), ("prance_ppo_1", (10, 20, 30))):
        with SummaryWriter(tmp_path / folder) as writer:
            for step in steps:
                writer.add_scalar("rollout/accuracy", 1.0, step)
    # Begun a minute ago: TensorBoard reads files of one second by name, the tenth of a process before the ninth.
    for events in [*tmp_path.rglob("events.out.tfevents.*")]:
        before, seconds, after = events.name.split(".", 3)[:3], *events.name.split(".", 4)[3:]
        events.rename(events.with_name(".".join([*before, str(int(seconds) - 60), after])))
    forget_curves_after(tmp_path, "ppo", 10)
    left = {}
    for folder in sorted(tmp_path.iterdir()):
        log = EventAccumulator(str(folder))
        log.Reload()
        left[folder.name] = [scalar.step for scalar in log.Scalars("rollout/accuracy")]
    assert left == {"ppo_1": [10], "ppo_2": [10], "prance_ppo_1": [10, 20, 30]}


def test_agents_of_one_name_get_files_of_their_own() -> None:
    names = ["full", "runs/a/model", "runs/b/model", "runs/b", "./runs/b (mean action)"]
    expected = ["full", "runs_a_model", "runs_b_model", "b", "b-mean-action"]
    assert file_names(names) == dict(zip(names, expected, strict=True))
    assert file_names(["../runs/a", "runs/a", "/runs/a"]) == {
        "../runs/a": "runs_a",
        "runs/a": "runs_a-2",
        "/runs/a": "runs_a-3",
    }


def test_trained_agents_bring_their_supernet_and_must_agree_on_it(
    engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    for name, checkpoint in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_text(yaml.safe_dump({"checkpoint": checkpoint, "observation": "cls"}))
    monkeypatch.setattr(runner, "load_agent", lambda *a: FullAgent(engine.config))
    monkeypatch.setattr(
        runner.EnvSettings, "from_id", lambda *a, **k: asked.append(k["checkpoint"]) or settings_for(engine)
    )
    a, b, c = (str(tmp_path / name) for name in "abc")
    run_eval(["full", a, c], EvalSettings(resamples=5))
    assert asked == ["one"] * 3
    with pytest.raises(ValueError, match=r"different values of checkpoint.*--checkpoint"):
        run_eval([a, b], EvalSettings(resamples=5))
    run_eval([a, b], EvalSettings(resamples=5, environment={"checkpoint": "three"}))
    assert asked[3:] == ["three"] * 2


def test_a_saved_model_is_played_under_the_token_mode_that_it_was_saved_with(tmp_path: Path) -> None:
    with scenes(test=IMAGES):
        settings = EnvSettings.from_id(split="test", token_mode="merge")
        agent = prance_ppo(Interface.of(settings))
        saved = str(tmp_path / "saved")
        AdaptiveViT.from_settings(settings, agent).save_pretrained(saved)
        found = run_eval([saved, "random"], EvalSettings(resamples=5), tmp_path / "out")
        expected = evaluate(agent, settings).summary()
        assert {k: found[saved][k] for k in ("accuracy", "macs_fraction")} == {
            k: expected[k] for k in ("accuracy", "macs_fraction")
        }
        noted = json.loads((tmp_path / "out" / "settings.json").read_text())
        assert (noted["token_mode"], noted["decide_first_group"]) == ("merge", False)
        other = EvalSettings(resamples=5, environment={"token_mode": "prune"})
        with pytest.raises(ValueError, match=r"token_mode='merge' instead of 'prune'.*without --token-mode"):
            run_eval([saved], other)
