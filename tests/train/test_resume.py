"""Going on with a run from the command line: the folder is enough."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import prance, refusal

from prance_env import __version__
from train.policies import tune as tuning
from train.policies.settings import AgentTraining
from train.runs.folder import noted_fields, read_config, write_command
from train.runs.progress import read_progress

pytestmark = pytest.mark.usefixtures("few_scenes")


@pytest.mark.slow
def test_the_folder_is_enough_to_go_on_and_what_differs_is_named(
    tmp_path: Path, checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").symlink_to(checkpoint)
    (tmp_path / "images").symlink_to(folder)
    (tmp_path / "mine.yml").write_text("default: {n_envs: 16, n_timesteps: 96, n_steps: 6, batch_size: 48}")
    monkeypatch.chdir(tmp_path)
    given = ("--checkpoint", "weights", "--dataset", "images", "--conf-file", "mine.yml", "--macs-weight", 0.1, 0.2)
    prance(monkeypatch, "train", "agent", "--out", "run", "--n-envs", 8, "--seed", 3, *given)
    noted = read_config(tmp_path / "run")
    assert noted["checkpoint"] == str(tmp_path / "weights")
    assert noted["dataset"] == str(tmp_path / "images")
    system = json.loads((tmp_path / "run" / "system.json").read_text())
    assert system["versions"]["prance-env"] == __version__
    own = yaml.safe_load((tmp_path / "run" / "hyperparams.yml").read_text())["default"]
    assert (own["n_envs"], own["n_timesteps"], own["batch_size"]) == (8, 96, 24)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mine.yml").unlink()
    run = tmp_path / "run"
    prance(monkeypatch, "train", "agent", "--resume", f"--out={run}")
    assert "has 96 of 96 steps already" in capsys.readouterr().out
    prance(monkeypatch, "train", "agent", "--out", run, "--resume", "--total-timesteps", 144)
    assert read_progress(run)["step"] == 144
    other = ("--seed", 4, "--token-mode", "merge")
    words = refusal(monkeypatch, "train", "agent", "--out", run, "--resume", *other)
    assert "values of ['seed', 'token_mode']: seed=4 instead of 3; token_mode='merge' instead of None" in words
    words = refusal(monkeypatch, "train", "agent", "--out", tmp_path / "none", "--resume")
    assert "holds no run, so there is nothing to resume; drop --resume" in words
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_search_goes_on_without_being_told_of_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(tuning, "validation_return", lambda *args: (0.5, 0.5, 0.5))
    given = ("--algo", "a2c", "--total-timesteps", 24, "--n-envs", 8, "--evaluations", 1, "--trials", 1)
    prance(monkeypatch, "tune", "--out", tmp_path, *given)
    prance(monkeypatch, "tune", "--out", tmp_path, "--resume", "--trials", 2)
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 3
    assert read_config(tmp_path)["trials"] == 2


def test_settings_come_back_from_a_folder_as_they_were(tmp_path: Path) -> None:
    environment: Any = {"token_mode": "tome", "dataset": {"name": str(tmp_path), "crop_pct": 0.9}}
    settings = AgentTraining(macs_weight=(0.1, 0.2), seed=7, environment=environment)
    write_command(tmp_path / "run", settings)
    noted = noted_fields(tmp_path / "run", AgentTraining)
    assert noted is not None
    assert AgentTraining(**noted) == settings
    assert noted_fields(tmp_path / "none", AgentTraining) is None


def test_the_folder_of_another_commands_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_command(tmp_path, AgentTraining(environment={"dataset": "digits"}))
    noted = (tmp_path / "config.yml").read_bytes()
    words = refusal(monkeypatch, "train", "supernet", "--preset", "digits-quick", "--out", tmp_path)
    assert "holds a run of another command, which has algo, conf_file, env among its settings; pass another" in words
    assert (tmp_path / "config.yml").read_bytes() == noted


@pytest.mark.parametrize("command", ["train supernet", "train static", "train joint", "tune"])
def test_the_run_of_another_command_is_not_resumed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "tune":
        pytest.importorskip("optuna")
    write_command(tmp_path, AgentTraining(environment={"dataset": "digits"}))
    assert "holds a run of another command" in refusal(monkeypatch, *command.split(), "--resume", "--out", tmp_path)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("train supernet --steps 2", "last.pt"),
        ("train agent --algo ppo --total-timesteps 24 --n-envs 4", "last.zip"),
        ("train agent --algo sac --total-timesteps 24 --n-envs 4", "last.zip"),
        ("train agent --algo prance_ppo --total-timesteps 24 --n-envs 4", "last/place.pt"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(
    command: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    prance(monkeypatch, *command.split(), "--out", run)
    good = (run / file).read_bytes()
    with zipfile.ZipFile(run / file) as archive:
        members = [found for name in archive.namelist() if len(found := archive.read(name)) >= 16]
    flipped = [good.index(member) + len(member) // 2 for member in members[:: len(members) // 6]]
    for damaged in (b"", good[: len(good) // 2], *(good[:i] + bytes([good[i] ^ 16]) + good[i + 1 :] for i in flipped)):
        (run / file).write_bytes(damaged)
        words = refusal(monkeypatch, *command.split()[:2], "--resume", "--out", run)
        assert f"{run / file} is damaged" in words
        assert "put a copy of it back, or begin anew in another folder" in words
    (run / file).write_bytes(good)
    prance(monkeypatch, *command.split()[:2], "--resume", "--out", run)


@pytest.mark.parametrize(
    ("command", "noted", "said"),
    [
        (("tune",), "{}", "config.yml: algo is missing; correct it, or begin another run"),
        (("train", "joint"), "{}", "config.yml: agent is missing; correct it, or begin another run"),
        (("train", "joint"), "{agent: x, changes: 3}", "changes=3 must be a valid dictionary"),
        (("train", "joint"), "{agent: x, rounds: many}", "rounds='many' must be a valid integer"),
        (("train", "static"), "{}", "--from is missing"),
    ],
)
def test_a_damaged_configuration_is_named(
    command: tuple[str, ...], noted: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yml").write_text(noted)
    assert said in refusal(monkeypatch, *command, "--out", tmp_path, "--resume")
