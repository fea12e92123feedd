"""Watching an agent learn: validations change nothing, their curve follows the checkpoints, the best agent is kept."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import prance, refusal
from helpers import assert_equal_policies
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from agents.episode_means import choices_of
from prance_env import PranceVectorEnv
from prance_env.settings import EnvSettings
from supernet.arrays import evenly
from train.play import mean_return, of_all_classes
from train.policies import train_prance_ppo, train_sb3
from train.policies.algorithm import TrainingRun
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.policies.validation import Validation, best_row
from train.runs.curves import read_curves

pytestmark = pytest.mark.usefixtures("few_scenes")

N = 16
WATCHED: dict[str, Any] = {"n_envs": N, "eval_images": 40}
RUNS = {
    "ppo": AgentTraining(algo="ppo", total_timesteps=N * 36, eval_freq=N * 12, **WATCHED),
    "sac": AgentTraining(algo="sac", total_timesteps=N * 36, eval_freq=N * 12, **WATCHED),
    "prance_ppo": AgentTraining(algo="prance_ppo", total_timesteps=N * 288, eval_freq=N * 96, **WATCHED),
}
EVERY = [pytest.param(name, id=name) for name in RUNS]


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_sb3, "OFF_POLICY_EPISODES", 2)
    for stage in (train_sb3, train_prance_ppo):
        monkeypatch.setattr(stage, "ROLLOUTS_PER_STRETCH", 2)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_what_is_trained_does_not_depend_on_being_watched_and_goes_on_as_if_not_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, whole, parts = RUNS[name], tmp_path / "whole", tmp_path / "parts"
    plain = train_agent(replace(settings, eval_freq=0), tmp_path / "plain", progress_bar=False)
    assert not (tmp_path / "plain" / "best").exists()
    watched = train_agent(settings, whole, progress_bar=False)
    assert_equal_policies(plain, watched)
    assert (tmp_path / "plain" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()

    is_best = TrainingRun.is_best

    def stop(how: str, after: int) -> None:
        def stopping(self: TrainingRun, agent: Any, timesteps: int, *more: Any, **named: Any) -> bool:
            best = is_best(self, agent, timesteps, *more, **named)
            if timesteps > after:
                monkeypatch.setattr(TrainingRun, "is_best", is_best)
                if how == "kill":
                    raise MemoryError
                signal.raise_signal(signal.SIGINT)
            return best

        monkeypatch.setattr(TrainingRun, "is_best", stopping)

    stop("kill", settings.eval_freq)  # after a validation, before the checkpoint that belongs to it
    with pytest.raises(MemoryError):
        train_agent(settings, parts, progress_bar=False)
    stop("Ctrl-C", settings.eval_freq)
    with pytest.raises(KeyboardInterrupt):
        train_agent(settings, parts, resume=True, progress_bar=False)
    resumed = train_agent(settings, parts, resume=True, progress_bar=False)
    assert_equal_policies(watched, resumed)
    assert (whole / "evaluations.jsonl").read_bytes() == (parts / "evaluations.jsonl").read_bytes()
    assert len(rows_of(whole)) == 3
    for tag in ("eval/return", "rollout/accuracy"):
        for ours, theirs in zip(read_curves(whole)[tag], read_curves(parts)[tag], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    env = EnvSettings.from_id(split="test")
    assert_equal_policies(load_agent(str(whole / "best"), env), load_agent(str(parts / "best"), env))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_best_agent_is_kept_and_tensorboard_shows_choices_and_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, out, judge = RUNS[name], tmp_path / "run", Validation.is_best
    found = iter([0.1, 0.3, 0.2])
    seen: list[Any] = []

    def scored(agent: Any, env: EnvSettings, **more: Any) -> tuple[float, float, float]:
        seen.append(mean_return(agent, env, **more))
        return next(found), 0.5, 0.5

    monkeypatch.setattr("train.policies.validation.mean_return", scored)
    last = train_agent(settings, out, progress_bar=False)
    assert judge is Validation.is_best
    assert [row["return"] for row in rows_of(out)] == [0.1, 0.3, 0.2]
    val = EnvSettings.from_id(split="val", **settings.env_arguments)
    best = load_agent(str(out / "best"), val)
    assert mean_return(best, val, images=evenly(256, 40)) == pytest.approx(seen[1])
    if name != "sac":  # which has not begun to learn
        with pytest.raises(AssertionError):
            assert_equal_policies(best, last)
    prance(monkeypatch, "eval", "--agent", out / "best")
    assert "best" in capsys.readouterr().out

    (events,) = out.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events), size_guidance={"images": 0})
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert {f"{size}/decision_{t}" for size in ("embed_dim", "mlp_ratio", "keep_rate") for t in (1, 2, 3)} <= tags
    assert {"reward/accuracy", "reward/macs", "eval/return", "eval/accuracy", "eval/macs_fraction"} <= tags
    assert len(log.Images("eval/episodes")) == 3
    assert "_hparams_/experiment" in log.summary_metadata
    rows = [json.loads(line)["timesteps"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [s.step for s in log.Scalars("keep_rate/decision_1")] == rows


def test_choices_of_episodes_are_told_by_decision() -> None:
    envs = PranceVectorEnv(4, "SAME_STEP", split="val", reward={"mode": "potential"})
    envs.reset(seed=0)
    unit = np.zeros((3, 7), dtype=np.float32)
    unit[1], unit[2, :3] = 1, 1
    total = np.zeros(4)
    for decision in range(3):
        _, reward, _, _, infos = envs.step(np.tile(2 * unit[decision] - 1, (4, 1)))
        total += reward
    means = {tag: values.tolist() for tag, values in choices_of(infos["final_info"], envs.config.space).items()}
    assert means["embed_dim/decision_1"] == means["embed_dim/decision_3"] == [16] * 4
    assert means["embed_dim/decision_2"] == [64] * 4
    assert [means[f"mlp_ratio/decision_{t}"][0] for t in (1, 2, 3)] == [0.5, 2, 2]
    assert [means[f"keep_rate/decision_{t}"][0] for t in (1, 2, 3)] == [0.0625, 1, 0.0625]
    terms = [means[f"reward/{term}"] for term in ("accuracy", "macs", "tokens")]
    np.testing.assert_allclose(np.sum(terms, axis=0), total)


@pytest.mark.slow
def test_an_agent_for_a_range_of_prices_is_judged_at_several(tmp_path: Path) -> None:
    settings = replace(RUNS["prance_ppo"], macs_weight=(0.01, 0.3), total_timesteps=N * 96)
    agent = train_agent(settings, tmp_path / "run", progress_bar=False)
    (row,) = rows_of(tmp_path / "run")
    env = EnvSettings.from_id(split="val", **settings.env_arguments)
    prices = [replace(env, cost_conditioning=(0.01, 0.3, price)) for price in (0.01, 0.05477, 0.3)]
    expected = np.mean([mean_return(agent, at, images=evenly(256, 40)) for at in prices], axis=0)
    np.testing.assert_allclose([row["return"], row["accuracy"], row["macs_fraction"]], expected, rtol=1e-6)


def test_images_are_spread_over_the_split() -> None:
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 512).tolist() == [0, 1, 2]


def test_images_stand_for_all_classes() -> None:
    mixed, sorted_by_class = np.tile([0, 1, 2], 4), np.repeat([0, 1, 2], 4)
    assert of_all_classes(mixed, 4).tolist() == [0, 1, 2, 3], "the first ones, as ever"
    assert of_all_classes(sorted_by_class, 4).tolist() == [0, 4, 7, 11]
    assert of_all_classes(sorted_by_class, 99).tolist() == [*range(12)]


def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("--eval-freq=-1", "--eval-images=0"):
        words = refusal(monkeypatch, "train", "agent", "--out", tmp_path / "run", option)
        assert "eval_freq=" in words
        assert "eval_images=" in words
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["[]", "NaN", '"text"', "true", "null"])
def test_a_validation_that_tells_of_no_return_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text(f'{{"timesteps": 3, "return": {value}}}\n')
    with pytest.raises(ValueError, match=r"evaluations\.jsonl: the row at 3 says return=.*must be a number"):
        Validation(EnvSettings.from_id(), tmp_path, 0, 1).resume(3)
    with pytest.raises(ValueError, match="the row at 3"):
        best_row(tmp_path)
