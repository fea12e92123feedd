"""`prance demo` in its quick form: every step runs and the files hold what they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from train import demo
from train.demo import FRONT_POINTS, run_demo
from train.policies.settings import AgentTraining
from train.runs.folder import write_command


def test_only_the_agent_of_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    write_command(agent, AgentTraining(env=demo.ENV, total_timesteps=demo.TIMESTEPS, algo="sac"))
    with pytest.raises(FileExistsError, match="is not the agent of an earlier demo"):
        run_demo(tmp_path, quick=True)
    assert (agent / "config.yml").is_file()
    training = AgentTraining(env=demo.ENV, total_timesteps=demo.QUICK_TIMESTEPS, seed=3)
    write_command(agent, training)
    demo._remove_earlier(agent, replace(training, total_timesteps=demo.TIMESTEPS, seed=0))
    assert not agent.exists()


@pytest.mark.slow
def test_the_quick_demo_writes_metrics_figures_and_a_report(
    few_scenes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Quicker still: CI runs the quick form as it is.
    monkeypatch.setattr(demo, "QUICK_TIMESTEPS", 3_072)
    monkeypatch.setattr(demo, "QUICK_SUBNETS", 10)
    monkeypatch.setattr(demo, "QUICK_SEARCH_IMAGES", 64)
    run_demo(tmp_path, quick=True)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("full", "agent", "random", "mean_action"):
        summary = metrics[name]
        assert summary["n_images"] == few_scenes
        assert 0 <= summary["accuracy"] <= 1
        assert 0 < summary["macs_fraction"] <= 1
        assert 0 < summary["patches_fraction"] <= 1
        assert sum(s["n_images"] for s in summary["by_difficulty"].values()) == summary["n_images"]
    assert metrics["full"]["macs_fraction"] == 1
    assert 2 <= len(metrics["static_front"]) <= FRONT_POINTS
    costs = [s["macs_fraction"] for s in metrics["static_front"]]
    assert costs == sorted(costs)
    for name in ("pareto.png", "episodes.png", "difficulty.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 300
            assert len(image.convert("RGB").getcolors(2**24) or []) > 20
    assert "![accuracy against MACs](pareto.png)" in (tmp_path / "report.md").read_text()
