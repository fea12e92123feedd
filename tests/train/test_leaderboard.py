"""`prance benchmark`: from nothing to the page, on from where it stopped, and figures that say what they should."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from prance_env import ImageDataset, register_dataset
from prance_env.images.loading import load_dataset
from train.policies.settings import AgentTraining
from train.report.leaderboard_page import benchmark_page, shuffling, wanted
from train.search.memory import FOLDER
from train.yardsticks import compute as yardsticks
from train.yardsticks import leaderboard as maker
from train.yardsticks.compute import YardstickSettings
from train.yardsticks.fronts import FRONTS, Front, Yardsticks
from train.yardsticks.leaderboard import (
    ADAPTIVE,
    EVERY_BUDGET,
    STATIC,
    BenchmarkSettings,
    run_benchmark,
    seeds_and_images_interval,
    standing_of,
)

pytestmark = pytest.mark.usefixtures("few_scenes")

ENV, IMAGES = "Prance-FewDigits-v0", 48


def few_digits(split: str) -> ImageDataset:
    """The first scenes of each split."""
    scenes: Any = load_dataset("digits", split)
    return ImageDataset.from_tensors(
        torch.as_tensor(scenes.images[:IMAGES]), scenes.labels[:IMAGES], scenes.difficulty[:IMAGES], "digits"
    )


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> BenchmarkSettings:
    """Two seeds of a few steps on few images."""
    register_dataset("few_digits", few_digits)
    kwargs = {**gym.spec("Prance-Digits-v0").kwargs, "dataset": "few_digits"}
    monkeypatch.setitem(gym.registry, ENV, replace(gym.spec("Prance-Digits-v0"), id=ENV, kwargs=kwargs))
    monkeypatch.setattr(yardsticks, "PRICES", np.array([0.03, 0.3]))
    monkeypatch.setattr(yardsticks, "CONFIDENCE_PRICES", np.array([0.03]))
    monkeypatch.setattr("train.search.confidence.NUM_CANDIDATES", 2)
    monkeypatch.setattr(maker, "FRONT", (0.03, 0.3))
    ours = AgentTraining(env=ENV, algo="prance_ppo", macs_weight=maker.PRICE, total_timesteps=48, n_envs=128)
    entries = {
        ADAPTIVE: ours,
        EVERY_BUDGET: replace(ours, macs_weight=maker.PRICES),
        STATIC: replace(ours, observation="constant"),
    }
    made = YardstickSettings(env=ENV, num_subnets=8, oracle_subnets=4, copies=1, sweeps=1, designs=False)
    return BenchmarkSettings(entries, made, seeds=(0, 1), resamples=20)


@pytest.mark.slow
def test_one_command_makes_the_leaderboard_and_goes_on_where_it_stopped(
    settings: BenchmarkSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_benchmark(replace(settings, seeds=(0,)), tmp_path)
    model = next((tmp_path / "pranceppo-0" / "model").glob("*.safetensors"))
    made, written = model.stat().st_mtime_ns, (tmp_path / "yardsticks" / "yardsticks.json").stat().st_mtime_ns
    left = tmp_path / "yardsticks" / FOLDER  # of a process that was killed when the yardsticks were there
    left.mkdir()
    (left / "times.json").write_text("{}")
    report = run_benchmark(settings, tmp_path)
    assert not left.exists()
    assert model.stat().st_mtime_ns == made
    assert (tmp_path / "yardsticks" / "yardsticks.json").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "benchmark.json").read_text()) == report
    assert (tmp_path / "benchmark.md").read_text() == benchmark_page(report)
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    assert list(report["agents"]) == [ADAPTIVE, EVERY_BUDGET, STATIC]
    for name, agent in report["agents"].items():
        assert len(agent["accuracy"]) == len(agent["shuffled"]) == len(agent["cpu_seconds"]) == 2
        assert agent["accuracy"][0] == first["agents"][name]["accuracy"][0]
        assert agent["loss"] == pytest.approx(report["full"]["accuracy"] - np.mean(agent["accuracy"]))
        low, high = agent["loss_interval"]
        assert low <= agent["loss"] <= high
    # Who does not look loses nothing when shuffled, and is itself a point of the static front.
    static = report["agents"][STATIC]
    assert shuffling(static, report) == pytest.approx(0, abs=1e-9)
    assert {row["agent"] for row in report["fronts"]["static"]} >= {str(tmp_path / "learned-static-policy-0")}
    assert f"{EVERY_BUDGET} (0.3)" in report["points"]
    other = {**settings.entries, ADAPTIVE: replace(settings.entries[ADAPTIVE], macs_weight=0.5)}
    with pytest.raises(ValueError, match=r"pranceppo-0 holds a run with other values of \['macs_weight'\]"):
        run_benchmark(replace(settings, entries=other), tmp_path)


def test_the_interval_covers_both_images_and_seeds() -> None:
    images, seeds = np.random.default_rng(0).normal(size=(1, 400)), np.array([[-0.5], [0.0], [0.5]])
    of_images = seeds_and_images_interval(np.repeat(images, 3, axis=0))
    of_both = seeds_and_images_interval(images + seeds)
    assert np.ptp(of_images) == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert np.ptp(of_both) > 2 * np.ptp(of_images)


def test_what_is_wanted_is_met_or_missed_by_the_figures() -> None:
    agent = {
        "loss": 0.002,
        "loss_interval": [-0.001, 0.005],
        "accuracy": [0.95, 0.96],
        "macs_fraction": [0.5, 0.4],
        "standing": [{"saved": 0.3, "headroom_won": 0.9}, {"saved": 0.25, "headroom_won": 0.8}],
        "confidence_gain": 0.01,
        "confidence_p": 0.001,
        "shuffled": [{"score": 0.9}, {"score": 0.91}],
    }
    assert all(met for _, _, met in wanted(agent, {"price": 0.03}))
    worse: dict[str, Any] = {
        "loss": 0.004,
        "loss_interval": [0.0, 0.007],
        "macs_fraction": [0.6, 0.6],
        "standing": [{"saved": 0.2, "headroom_won": None}, {"saved": 0.2, "headroom_won": 0.9}],
        "confidence_gain": -0.01,
        "shuffled": [{"score": 1.0}, {"score": 1.0}],
    }
    assert not any(met for _, _, met in wanted({**agent, **worse}, {"price": 0.03}))
    assert wanted({**agent, **worse}, {"price": 0.03})[4][1] == "not defined"


def test_seeds_that_cannot_be_are_refused() -> None:
    for seeds in ((), (1, 1)):
        with pytest.raises(ValueError, match="must name at least one, and none twice"):
            BenchmarkSettings.digits(seeds)


def test_yardsticks_that_were_made_with_other_settings_are_not_judged_by(
    settings: BenchmarkSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "_train", lambda *args: None)
    monkeypatch.setattr(maker, "run_yardsticks", lambda *args: pytest.fail("made anew"))
    ones, point = np.ones((1, IMAGES)), np.zeros(IMAGES, dtype=np.int64)
    fronts = dict.fromkeys(FRONTS, Front(np.ones(1), ones > 0, ones, (None,)))
    noted = json.loads(json.dumps(asdict(settings.yardsticks)))
    Yardsticks(point, point, point, fronts, {**noted, "num_subnets": 9}).save(tmp_path / "yardsticks")
    with pytest.raises(ValueError, match=r"other values of \['num_subnets'\].*num_subnets=8 instead of 9.*Remove"):
        run_benchmark(settings, tmp_path)
    assert json.loads((tmp_path / "yardsticks" / "yardsticks.json").read_text())["num_subnets"] == 9


def judged(correct: list[bool], macs: float) -> Any:
    """An evaluation on images that are alike."""
    spent, alike = np.full(len(correct), macs), np.zeros(len(correct), dtype=int)
    return SimpleNamespace(
        correct=np.array(correct),
        macs_fraction=spent,
        macs=spent,
        difficulty=alike,
        summary=lambda: {"patches_fraction": 1.0},
    )


def test_a_gain_over_the_heuristic_is_more_accuracy_or_fewer_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "standing", lambda *args, **named: {})
    heuristic, full = judged([True, True, False, False], 0.5), judged([True] * 4, 1.0)
    known: Any = SimpleNamespace(point=lambda front, price: (0.1, heuristic))
    found = standing_of([judged([True] * 4, 0.3), judged([True, True, True, False], 0.4)], full, known, resamples=5)
    assert found["confidence_gain"] == pytest.approx((0.875 - 0.1 * 0.35) - (0.5 - 0.1 * 0.5))
    assert found["loss"] == pytest.approx(1 - 0.875)


def test_a_gain_is_more_than_chance_if_its_mean_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "standing", lambda *args, **named: {})

    def p_of(right: list[bool], macs: float, others: list[bool], spent: float) -> float:
        full, heuristic = judged([True] * len(right), 1.0), judged(others, spent)
        known: Any = SimpleNamespace(point=lambda front, price: (0.1, heuristic))
        return float(standing_of([judged(right, macs)], full, known, resamples=5)["confidence_p"])

    # Right about a few more, and dearer for all others: by ranks that is worse, by the mean next to nothing.
    few, none = [True] * 12 + [False] * 388, [False] * 400
    assert p_of(few, 0.5, none, 0.3) > 0.1
    assert p_of([True] * 30 + [False] * 370, 0.5, none, 0.3) < 0.01
    assert p_of(none, 0.5, few, 0.3) > 0.99
    assert p_of(none, 0.5, none, 0.5) == 1
    assert p_of(none, 0.3, none, 0.5) == 0


def test_a_score_has_its_price_and_seeds_their_spread() -> None:
    assert maker._score(judged([True, False] * 2, 0.3), 0.1)["score"] == pytest.approx(0.5 - 0.1 * 0.3)
    found = maker._mean([{"accuracy": 0.9, "macs_fraction": 0.3}, {"accuracy": 0.8, "macs_fraction": 0.4}])
    assert (found["accuracy_interval"], found["macs_fraction_interval"]) == ([0.8, 0.9], [0.3, 0.4])
