"""`prance eval --agent` takes whatever saves an agent here, and says what an episode of it is worth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import prance, refusal
from conftest import scenes

from agents import AdaptiveViT, FullAgent, StaticAgent, make_sb3
from prance_env import EnvSettings, make_sb3_env
from supernet import SubnetConfig, save_pretrained
from train.evaluate import evaluate
from train.evaluate.rows import read_rows
from train.play import mean_return
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs.lock import new_folder

pytestmark = pytest.mark.slow
IMAGES = 24


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with one of everything that is saved; the environments have few scenes."""
    root = tmp_path_factory.mktemp("saved")
    with scenes(train=48, val=IMAGES, test=IMAGES):
        for name, algo, price in (("ppo", "ppo", 0.1), ("own", "prance_ppo", 0.1), ("any", "prance_ppo", (0.01, 0.3))):
            training = AgentTraining(algo=algo, n_envs=64, total_timesteps=192, macs_weight=price)
            train_agent(training, root / name, progress_bar=False)
        settings = EnvSettings.from_id(split="val")
        make_sb3("ppo", make_sb3_env("Prance-Digits-v0", n_envs=4)).save(root / "agent.zip")
        subnet = SubnetConfig.min(settings.config().space)
        (root / "min-subnet.json").write_text(subnet.to_json())
        StaticAgent(subnet, settings.config()).save(root / "static.json")
        AdaptiveViT.from_run(root / "any", images=0).save_pretrained(root / "deployed")
        save_pretrained(settings.engine().net, root / "supernet")
        yield root


def metrics_of(monkeypatch: pytest.MonkeyPatch, out: Path, *agents: Path | str, extra: tuple[str, ...] = ()) -> Any:
    words = ("--split", "val", "--resamples", "5", "--out", out, *extra)
    prance(monkeypatch, "eval", "--agent", *agents, *words)
    return json.loads((out / "metrics.json").read_text())


def test_every_file_that_is_saved_is_an_agent(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = [saved / "ppo" / name for name in ("", "model.zip", "last.zip", "policy.safetensors")]
    same += [saved / "own" / name for name in ("", "model", "last", "model/model.safetensors")]
    subnets = [saved / "min-subnet.json", saved / "static.json"]
    found = metrics_of(monkeypatch, tmp_path / "out", *same, *subnets, "full")
    first = [found[str(path)] for path in same[:4]]
    others = [found[str(path)] for path in same[4:]]
    for part in (first, others, [found[str(path)] for path in subnets]):
        assert {(m["accuracy"], m["macs_fraction"], round(m["return"], 9)) for m in part} == {
            (part[0]["accuracy"], part[0]["macs_fraction"], round(part[0]["return"], 9))
        }
    metrics_of(monkeypatch, tmp_path / "zip", saved / "agent.zip", extra=("--trust",))


def test_a_deployed_model_is_its_agent_for_all_prices(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metrics_of(monkeypatch, tmp_path / "out", saved / "any", saved / "deployed", extra=("--macs-weight", "0.1"))
    run, deployed = (found[f"{saved / name} (macs_weight 0.1)"] for name in ("any", "deployed"))
    assert (run["accuracy"], run["macs_fraction"]) == (deployed["accuracy"], deployed["macs_fraction"])
    assert run["return"] == pytest.approx(deployed["return"])


def test_a_deployed_model_is_not_judged_on_another_supernet(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = EnvSettings.from_id().network()
    net.head.weight.data.neg_()
    save_pretrained(net, tmp_path / "other")
    words = (
        "--agent",
        saved / "deployed",
        "--split",
        "val",
        "--checkpoint",
        tmp_path / "other",
        "--out",
        tmp_path / "o",
    )
    assert "saved with another supernet" in refusal(monkeypatch, "eval", *words)


def test_what_is_no_agent_is_said(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"--checkpoint {saved / 'supernet'}" in refusal(monkeypatch, "eval", "--agent", saved / "supernet")
    shutil.copytree(saved / "ppo", tmp_path / "begun")
    (tmp_path / "begun" / "model.zip").unlink()
    (tmp_path / "begun" / "policy.safetensors").unlink()
    said = refusal(monkeypatch, "eval", "--agent", tmp_path / "begun", "--out", tmp_path / "out")
    assert f"--agent {tmp_path / 'begun' / 'last.zip'}" in said
    assert f"prance train agent --resume --out {tmp_path / 'begun'}" in said
    assert "Did you mean 'full'?" in refusal(monkeypatch, "eval", "--agent", "ful")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["potential", "terminal", "result_to_go"])
def test_the_return_is_that_of_the_episodes(saved: Path, mode: str) -> None:
    reward = {"mode": mode, "accuracy": "mixed", "macs_weight": 0.1, "token_weight": 0.2}
    settings = EnvSettings.from_id(split="val", reward=reward)
    agent = FullAgent(settings.config())
    result = evaluate(agent, settings, batch_size=7, returns=True)
    assert result.returns is not None
    assert result.returns.shape == (IMAGES,)
    assert result.summary()["return"] == pytest.approx(mean_return(agent, settings)[0], abs=1e-12)
    # The full network agrees with itself, pays for all MACs, and keeps every patch at every decision that is paid.
    paid = 3 if mode == "result_to_go" else 1
    np.testing.assert_allclose(result.returns, paid * (1 - 0.1 - 0.2), atol=1e-6)


def test_returns_are_by_the_reward_of_the_training_or_by_that_which_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = metrics_of(monkeypatch, tmp_path / "own", saved / "ppo", "full")
    assert own["full"]["return"] == pytest.approx(1 - 0.1)
    assert own["full"]["reward"] == {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.1}
    assert "Returns are by the reward" in capsys.readouterr().out
    named = ("--reward", "paper", "--reward.token-weight", "0.5")
    paper = metrics_of(monkeypatch, tmp_path / "paper", saved / "ppo", "full", extra=named)
    assert paper["full"]["reward"] == {"preset": "paper", "token_weight": 0.5}
    assert 1.4 < paper["full"]["return"] < 1.5  # three decisions, half for keeping all patches, and next to no MACs
    rows = read_rows(tmp_path / "paper" / "full.csv")
    assert rows["return"].mean() == pytest.approx(paper["full"]["return"])


def test_the_folder_is_a_new_one_under_runs(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("", "-2"):
        prance(monkeypatch, "eval", "--agent", saved / "static.json", "full", "--split", "val", "--resamples", 5)
        assert f"Written to runs/eval-static.json-full-val{number}\n" in capsys.readouterr().out
    assert (tmp_path / "runs" / "eval-static.json-full-val-2" / "metrics.json").is_file()
    refusal(monkeypatch, "eval", "--agent", "full", "nobody", "--split", "val")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "eval-static.json-full-val",
        "eval-static.json-full-val-2",
    ]


def test_a_folder_that_stays_empty_is_removed_with_its_parents(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "runs" / "eval"):
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())
