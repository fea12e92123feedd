"""`prance tune`: it finds what is better, goes on as if it had not stopped, and judges on validation images."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import refusal
from sb3_envs import envs

from agents import FullAgent, RandomAgent
from agents.sb3.hyperparams import ALGORITHMS, PRESETS, merged, read_preset
from agents.sb3.make import fitted
from prance_env.settings import EnvSettings
from train.commands.main import main
from train.evaluate import evaluate
from train.policies import tune as tuning
from train.policies.study_file import damage_told
from train.policies.tune import TuneSettings, _as_params, _nested, _open_study, read_ranges, tune, validation_return
from train.runs.folder import write_command

optuna = pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.usefixtures("few_scenes"),
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size"),
]
TINY = TuneSettings(algo="ppo", trials=4, total_timesteps=144, evaluations=3, startup_trials=2, n_envs=8)
ENDED = TuneSettings(algo="ppo", trials=2, total_timesteps=24, evaluations=1, n_envs=8)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges by how near the action on one observation is to something instead of by the validation split."""

    def judge(agent: Any, env_id: str, env_arguments: dict[str, Any]) -> tuple[float, float, float]:
        row = np.linspace(-1, 1, agent.observation_space.shape[0], dtype=np.float32)
        action = agent.predict(row, deterministic=True)[0]
        return -float(np.abs(action - np.linspace(-1, 1, len(action))).mean()), 0.5, 0.25

    monkeypatch.setattr(tuning, "validation_return", judge)


def tried(study: optuna.Study) -> list[tuple[Any, ...]]:
    """What was tried and what came of it, of the trials that have ended."""
    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED))
    return [(t.params, t.value, t.intermediate_values, t.state) for t in trials]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_interrupted_search_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(TINY, tmp_path / "whole", progress_bar=False)
    assert len(tried(whole)) == 4
    tune(replace(TINY, trials=2), tmp_path / "parts", progress_bar=False)

    make = tuning.make_sb3

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "make_sb3", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(TINY, tmp_path / "parts", resume=True, progress_bar=False)
    monkeypatch.setattr(tuning, "make_sb3", make)
    parts = tune(TINY, tmp_path / "parts", resume=True, progress_bar=False)
    assert tried(parts) == tried(whole)
    assert len({json.dumps(params, sort_keys=True) for params, *_ in tried(whole)}) == 4
    with pytest.raises(FileExistsError, match="--resume"):
        tune(TINY, tmp_path / "parts", progress_bar=False)
    with pytest.raises(ValueError, match=r"other values of \['seed'\]"):
        tune(replace(TINY, seed=1), tmp_path / "parts", resume=True, progress_bar=False)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        tune(TINY, tmp_path / "none", resume=True, progress_bar=False)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_preset_is_tried_first_and_the_best_is_a_preset_again(tmp_path: Path) -> None:
    study = tune(TINY, tmp_path, progress_bar=False)
    preset = read_preset("ppo")
    as_trained = fitted(preset.hyperparams, envs(8), preset.n_envs / 8)
    first = study.trials[0].user_attrs["hyperparams"]
    assert {name: first[name] for name in preset.hyperparams} == as_trained
    best = read_preset("ppo", tmp_path / "best.yml")
    assert (best.n_envs, best.n_timesteps) == (8, 144)
    assert best.hyperparams == study.best_trial.user_attrs["hyperparams"]
    searched = {name.split(".")[0] for name in read_ranges("ppo")}
    assert set(best.hyperparams) == set(preset.hyperparams) | searched
    assert study.best_value == max(t.value for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE)
    entry = yaml.safe_load((tmp_path / "best.yml").read_text())["default"]
    assert entry["env_kwargs"]["reward"] == TINY.env_arguments["reward"]
    with (tmp_path / "trials.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(row["number"]) for row in rows] == list(range(4))
    assert json.loads(rows[0]["hyperparams"]) == first
    assert {row["accuracy"] for row in rows} == {"0.50000"}
    for params, _, _, _ in tried(study):
        for name, span in read_ranges("ppo").items():
            if isinstance(span, list):
                assert json.loads(params[name]) in span
            else:
                assert span["low"] <= params[name] <= span["high"]


@pytest.mark.usefixtures("quick")
def test_trials_train_as_the_preset_and_the_best_would(tmp_path: Path) -> None:
    entry = {"n_envs": 4, "n_timesteps": 96, "n_steps": 4, "batch_size": 10, "learning_rate": 0.001, "gae_lambda": 1}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"Prance-Digits-v0": entry}))
    spans = {"n_steps": [4, 8], "batch_size": [6, 18], "gae_lambda": [0.9, 1.0]}
    rate = {"low": 1e-4, "high": 1e-2, "log": True, "schedule": "lin"}
    (tmp_path / "ranges.yml").write_text(yaml.safe_dump({"ppo": {**spans, "learning_rate": rate}}))
    files = {"conf_file": str(tmp_path / "mine.yml"), "ranges": str(tmp_path / "ranges.yml")}
    settings = replace(ENDED, **files)  # with twice as many environments
    first, second = tune(settings, tmp_path / "run", progress_bar=False).trials
    own = {"n_steps": 6, "batch_size": 20, "learning_rate": 0.001, "gae_lambda": 1}
    assert first.user_attrs["hyperparams"] == own
    assert first.params == {"n_steps": "4", "gae_lambda": "1.0"}
    other = second.user_attrs["hyperparams"]
    assert other["n_steps"] == {"4": 6, "8": 9}[second.params["n_steps"]]
    assert other["batch_size"] == 2 * json.loads(second.params["batch_size"])
    assert other["learning_rate"].startswith("lin_")


@pytest.mark.usefixtures("quick")
def test_settings_that_diverge_are_given_up_and_errors_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = tuning.validation_return

    def diverge(agent: Any, *args: Any) -> tuple[float, float, float]:
        with torch.no_grad():
            next(agent.policy.parameters()).fill_(float("nan"))
        raise ValueError("actions hold NaN")

    monkeypatch.setattr(tuning, "validation_return", diverge)
    study = tune(replace(TINY, trials=1), tmp_path / "nan", progress_bar=False)
    assert [t.state for t in study.trials] == [optuna.trial.TrialState.PRUNED]
    assert not (tmp_path / "nan" / "best.yml").exists()
    said = refusal(monkeypatch, "tune", "--out", tmp_path / "nan", "--resume")
    assert "No trial of 1 reached its end, so there is no best.yml; go on with --resume and more --trials" in said

    def wrong(*args: Any) -> tuple[float, float, float]:
        raise ValueError("a mistake")

    monkeypatch.setattr(tuning, "validation_return", wrong)
    with pytest.raises(ValueError, match="a mistake"):
        tune(replace(TINY, trials=1), tmp_path / "wrong", progress_bar=False)
    monkeypatch.setattr(tuning, "validation_return", validate)


@pytest.mark.slow
def test_the_return_is_that_of_every_validation_image_once() -> None:
    settings = EnvSettings.from_id(split="val")

    def judged(agent: Any, mode: str) -> tuple[float, float, float]:
        reward = {"accuracy": "mixed", "macs_weight": 0.05, "mode": mode}
        return validation_return(agent, "Prance-Digits-v0", {"reward": reward}, batch_size=1500)

    value, _, macs_fraction = judged(FullAgent(settings.config()), "terminal")
    assert (value, macs_fraction) == pytest.approx((1 - 0.05, 1))
    terminal, potential = (judged(RandomAgent(settings.config(), seed=3), mode) for mode in ("terminal", "potential"))
    assert terminal == pytest.approx(potential)
    random = evaluate(RandomAgent(settings.config(), seed=3), settings, batch_size=1500).summary()
    assert terminal[1:] == pytest.approx((random["accuracy"], random["macs_fraction"]))
    assert terminal[0] < value


@pytest.mark.parametrize(("evaluations", "halfway"), [(2, 1), (4, 2), (10, 5)])
def test_what_is_behind_is_given_up_halfway(evaluations: int, halfway: int, tmp_path: Path) -> None:
    study = _open_study(replace(TINY, evaluations=evaluations), tmp_path)
    for value in (1.0, 0.0):  # the second one is behind from the beginning
        trial = study.ask()
        given_up = []
        for step in range(1, evaluations + 1):
            trial.report(value, step)
            given_up += [step] if trial.should_prune() else []
        study.tell(trial, value)
    assert given_up[0] == halfway


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_presets_lie_in_the_ranges(algo: str) -> None:
    pytest.importorskip(ALGORITHMS[algo])
    ranges, preset = read_ranges(algo), read_preset(algo)
    # The rest of the ranges is about what presets leave to SB3.
    named = {name for name in ranges if name.split(".")[0] in preset.hyperparams}
    assert set(_as_params(preset.hyperparams, ranges)) == named
    assert len(named) >= 6


def test_a_preset_is_given_in_the_words_of_the_ranges_and_only_where_they_say_the_same() -> None:
    ranges, rate = read_ranges("ppo"), "lin_0.001"
    preset = {"gae_lambda": 1, "ent_coef": 0, "max_grad_norm": 3, "policy_kwargs": None}
    assert _as_params({**preset, "learning_rate": 0.001}, ranges) == {"gae_lambda": "1.0", "ent_coef": "0.0"}
    assert _as_params({"learning_rate": rate}, ranges) == {"learning_rate": 0.001}
    assert merged(preset, _nested({"policy_kwargs.log_std_init": -1.0}))["policy_kwargs"] == {"log_std_init": -1.0}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ("ppo: {gama: [1]}", r"ranges\.yml: PPO takes no \['gama'\]"),
        ("ppo: {policy_kwargs.layers: [1]}", r"takes no policy_kwargs \['layers'\]"),
        ("ppo: {gamma: []}", r"ppo.gamma=\[\]"),
        ("ppo: {gamma: {low: 1, high: 0}}", "low < high"),
        ("ppo: {gamma: {low: 0, high: 1, log: true}}", "low < high"),
        ("ppo: {gamma: {low: 0, high: 1, step: 1}}", "ppo.gamma"),
        ("ppo: {gamma: {low: 0, high: 1, schedule: cos}}", "ppo.gamma"),
        ("sac: {gamma: [1]}", "no search ranges for 'ppo'"),
        ("[]", "must be an object|must be a valid dictionary"),
        ("ppo: {", "no YAML file"),
    ],
)
def test_wrong_ranges_are_refused_by_name(ranges: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ranges.yml").write_text(ranges)
    with pytest.raises(ValueError, match=message):
        tune(replace(TINY, ranges=str(tmp_path / "ranges.yml")), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_without_optuna_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = refusal(monkeypatch, "tune", "--algo", "ppo", "--out", tmp_path / "run")
    assert "pip install -e '.[tune]'" in words
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
def test_one_command_searches_and_another_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prance", "tune", "--algo", "a2c", "--out", str(tmp_path), "--total-timesteps", "96", "--n-envs", "8"]
    for more in (["--trials", "1"], ["--trials", "2", "--resume"]):
        monkeypatch.setattr("sys.argv", [*command, "--evaluations", "1", *more])
        main()
    assert f"preset: {tmp_path / 'best.yml'}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="trials=0"):
        replace(TINY, trials=0)
    with pytest.raises(ValueError, match="startup_trials=-3 must be at least 0"):
        replace(TINY, startup_trials=-3)
    assert (PRESETS / "ranges.yml").is_file()


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """The folder of a search that has ended after two trials."""
    write_command(tmp_path, ENDED)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name=ENDED.algo, direction="maximize")
    for value in (0.25, 0.5):
        trial = study.ask()
        for name, said in {"hyperparams": {"gamma": 0.95}, "accuracy": 0.5, "macs_fraction": 0.25}.items():
            trial.set_user_attr(name, said)
        trial.report(value, 1)
        study.tell(trial, value)
    storage.engine.dispose()
    return tmp_path


def test_a_damaged_study_is_refused_in_a_sentence(ended: Path) -> None:
    path = ended / "study.db"
    good = path.read_bytes()
    assert len(tried(tune(ENDED, ended, resume=True, progress_bar=False))) == 2
    half, zeros = good[: len(good) // 2], good[:4096] + b"\x00" * 4096 + good[8192:]
    for damaged in (b"text" * 300, half, zeros):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"study\.db is damaged \(.*put a copy of it back"):
            tune(ENDED, ended, resume=True, progress_bar=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE studies SET study_name = 'ppp'", "holds a study 'ppp'"),
        ("UPDATE study_directions SET direction = 'MINIMIZE'", "not one of 'ppo' to maximize"),
        ("UPDATE trial_user_attributes SET value_json = '7' WHERE key = 'hyperparams'", "trial 0: hyperparams=7 must"),
        ("DELETE FROM trial_user_attributes WHERE key = 'macs_fraction'", "trial 0: macs_fraction is missing"),
        ("DELETE FROM trial_intermediate_values", r"trial 0: returns=\[\]"),
        ("UPDATE trial_values SET value = 9", "trial 0 ended with 9.0, and not with 0.25"),
    ],
)
def test_a_study_that_tells_something_else_is_refused(change: str, said: str, ended: Path) -> None:
    with closing(sqlite3.connect(ended / "study.db")) as database:
        database.execute(change)
        database.commit()
    with pytest.raises(ValueError, match=said):
        tune(ENDED, ended, resume=True, progress_bar=False)


def test_what_is_of_the_machine_is_no_damage_of_a_study(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="disk is full"), damage_told(tmp_path):
        raise RuntimeError("(sqlite3.OperationalError) database or disk is full")
