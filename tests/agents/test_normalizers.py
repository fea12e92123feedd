"""Files of normalisers beside those of models of SB3: found, refused where they are of another agent, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import prance
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import VecNormalize
from wrapped_agents import CASES, IMAGES, Settings, native, played_at_home

from agents.sb3.saved import pickles
from prance_env import EnvSettings
from train.evaluate import evaluate
from train.policies.load_agent import load_agent


def test_the_statistics_of_a_normaliser_are_found_where_rl_zoo_puts_them(tiny: Settings, tmp_path: Path) -> None:
    model, env = CASES["normalised"](tiny)
    assert isinstance(env, VecNormalize)
    zipped, statistics = tmp_path / "Prance-Digits-v0.zip", tmp_path / "Prance-Digits-v0" / "vecnormalize.pkl"
    statistics.parent.mkdir()
    model.save(zipped)
    env.save(str(statistics))
    assert pickles(zipped) == [zipped, statistics]  # which are unpickled if both are one's own
    found = evaluate(load_agent(str(zipped), EnvSettings(**tiny), trust=True), EnvSettings(**tiny))
    assert (found.prediction.tolist(), found.macs.tolist()) == played_at_home(model, env)


@pytest.mark.parametrize("kind", [PPO, SAC])
def test_a_normaliser_of_another_agent_beside_a_file_is_refused(kind: Any, tiny: Settings, tmp_path: Path) -> None:
    env, settings = native()(tiny), EnvSettings(**tiny)
    model = kind("MlpPolicy", env, seed=0, device="cpu", **({"n_steps": 3, "batch_size": 36} if kind is PPO else {}))
    VecNormalize(env).save(str(tmp_path / "vecnormalize.pkl"))
    model.save(tmp_path / "agent.zip")  # has seen nothing yet, so nobody can know
    load_agent(str(tmp_path / "agent.zip"), settings, trust=True)
    model.learn(3 * IMAGES).save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=r"agent\.zip: .* was not normalised, .*vecnormalize\.pkl.*folder"):
        load_agent(str(tmp_path / "agent.zip"), settings, trust=True)
    behind = kind.load(tmp_path / "agent.zip", env=VecNormalize(env), device="cpu").learn(3 * IMAGES)
    behind.save(tmp_path / "agent.zip")
    load_agent(str(tmp_path / "agent.zip"), settings, trust=True)


def test_the_command_says_which_normaliser_an_agent_looks_through(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, env = CASES["normalised"](tiny)
    assert isinstance(env, VecNormalize)
    monkeypatch.chdir(tmp_path)
    model.save("agent.zip")
    env.save("vecnormalize.pkl")
    chosen = [f"--{key}={tiny[key]}" for key in ("checkpoint", "dataset")]
    prance(monkeypatch, "eval", "--agent", "agent.zip", "--trust", *chosen, "--out", "eval")
    assert "agent.zip looks through vecnormalize.pkl" in capsys.readouterr().out
