"""Options derive from settings and registries: what is added there is on the command line, and nothing is twice."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from command_line import prance
from helpers import random_net

from prance_env.observations import OBSERVATIONS, register_observation
from prance_env.settings import EnvSettings
from supernet import SearchSpace, SupernetConfig, register_token_mode, save_pretrained, token_mode
from supernet.tokens import modes
from train.commands import main as entry
from train.commands.main import COMMANDS, Command, Group
from train.evaluate.rows import read_rows
from train.networks.recipes.images import ImagesRecipe
from train.options import OF_THE_COMMAND
from train.policies import train_sb3
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs.folder import changed_settings, write_command

# What version 0.1 wrote.
OLD_CONFIG = """env: Prance-Digits-v0
algo: ppo
preset: tuned
checkpoint: null
observation: cls
total_timesteps: 96
n_envs: 8
macs_weight: 0.05
seed: 0
device: cpu
conf_file: null
dataset: null
token_mode: null
dtype: float32
"""


def commands() -> dict[str, Command]:
    found: dict[str, Command] = {}
    for name, command in COMMANDS.items():
        inner = command.commands if isinstance(command, Group) else {"": command}
        found |= {f"{name} {word}".strip(): c for word, c in inner.items()}
    return found


def options_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str) -> set[str]:
    with pytest.raises(SystemExit):
        prance(monkeypatch, *command.split(), "--help")
    words = capsys.readouterr().out.replace(",", " ").split()
    return {word for word in words if word.startswith("--")}


@pytest.mark.parametrize(
    "command", ["train agent", "tune", "eval", "validate", "yardsticks", "benchmark", "headroom", "bench-training"]
)
def test_commands_that_make_environments_take_all_their_arguments(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {f.name for f in dataclasses.fields(EnvSettings)} - {*OF_THE_COMMAND}
    assert {"dataset", "num_workers", "cache_dir", "cache_mb", "decide_first_group", "on_error"} < wanted
    found = options_of(monkeypatch, capsys, command)
    assert {f"--{name.replace('_', '-')}" for name in wanted} <= found
    assert "--env" in found


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test registers is not there for the next."""
    yield
    modes._OURS.remove("of_a_user")
    OBSERVATIONS.remove("of_a_user")


def test_the_word_none_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    flag, left_out = "decide_first_group", [f.name for f in dataclasses.fields(EnvSettings) if f.default is None]
    names = {*left_out} - {flag, *OF_THE_COMMAND}
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", "None")]
    assert entry.parse(["train", "agent", "--out", "x", *words]).environment == dict.fromkeys(names)
    assert names == {"checkpoint", "cache_dir", "token_mode"}
    recipe = {f.name for f in dataclasses.fields(ImagesRecipe) if f.default is None} - {"source"}
    words = [word for name in recipe for word in (f"--{name.replace('_', '-')}", "None")]
    assert entry.parse(["train", "supernet", "--out", "x", *words]).changes == dict.fromkeys(recipe)
    assert {"teacher", "order", "num_classes"} <= recipe
    with pytest.raises(SystemExit):
        entry.parse(["train", "agent", "--help"])
    assert "usually not, if not given" in " ".join(capsys.readouterr().out.split())  # a flag takes no word


@pytest.mark.parametrize("command", ["bench", "train agent", "eval", "bench-env"])
def test_a_token_mode_of_a_user_is_a_choice(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register_token_mode("of_a_user", token_mode("prune"))
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        prance(monkeypatch, *command.split(), "--help")
    assert "of_a_user" in capsys.readouterr().out


@pytest.mark.slow
def test_an_agent_is_trained_and_evaluated_with_an_observation_of_a_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, equal_groups: str
) -> None:
    register_observation("of_a_user", ("max_prob", "decision"))
    run, images = str(tmp_path / "run"), ("--checkpoint", equal_groups, "--dataset", str(folder))
    training = ("--observation", "of_a_user", "--n-envs", "4", "--total-timesteps", "24")
    prance(monkeypatch, "train", "agent", "--out", run, *images, *training)
    prance(monkeypatch, "eval", "--agent", run, "--split", "val", "--out", f"{run}/eval")
    assert yaml.safe_load((tmp_path / "run" / "config.yml").read_text())["observation"] == "of_a_user"
    assert len(read_rows(tmp_path / "run" / "eval" / "run.csv")["index"]) == 36


@pytest.fixture
def equal_groups(tmp_path: Path) -> str:
    """Weights of a supernet whose first group can be decided, too."""
    space = SearchSpace((2, 2), (8, 16), (1, 2), (2,), 0.1)
    net = random_net(SupernetConfig(space, img_size=16, patch_size=4, in_chans=3, num_classes=3, head_dim=8))
    save_pretrained(net, tmp_path / "net")
    return str(tmp_path / "net")


@pytest.mark.slow
def test_what_the_id_of_an_environment_says_holds_in_an_evaluation_that_is_not_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, equal_groups: str
) -> None:
    spec = gym.spec("Prance-Digits-v0")
    own = {"checkpoint": equal_groups, "dataset": str(folder), "decide_first_group": True}
    gym.register(
        "Prance-Own-v0", spec.entry_point, vector_entry_point=spec.vector_entry_point, kwargs={**spec.kwargs, **own}
    )
    out = tmp_path / "eval"
    images = ("--checkpoint", equal_groups, "--dataset", folder, "--split", "val", "--env", "Prance-Own-v0")
    try:
        prance(monkeypatch, "eval", "--agent", "random", *images, "--out", out)
        prance(monkeypatch, "validate", out / "random.csv")
        assert "action_2_1" in read_rows(out / "random.csv")
        prance(monkeypatch, "eval", "--agent", "random", *images, "--out", out, "--no-decide-first-group")
        assert "action_2_1" not in read_rows(out / "random.csv")
        prance(monkeypatch, "validate", out / "random.csv")
    finally:
        gym.registry.pop("Prance-Own-v0")


@pytest.mark.slow
def test_an_agent_is_trained_and_evaluated_in_a_token_mode_of_a_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, equal_groups: str
) -> None:
    register_token_mode("of_a_user", token_mode("prune"))
    run, images = str(tmp_path / "run"), ("--checkpoint", equal_groups, "--dataset", str(folder))
    training = ("--token-mode", "of_a_user", "--n-envs", "4", "--total-timesteps", "24", "--decide-first-group")
    for words in (
        ("train", "agent", "--out", run, *images, *training, "--cache-mb", "1", "--num-workers", "0"),
        ("eval", "--agent", run, "--split", "val", "--out", f"{run}/eval"),
        ("validate", f"{run}/eval/run.csv"),
    ):
        prance(monkeypatch, *words)
    noted = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())
    assert (noted["token_mode"], noted["decide_first_group"], noted["cache_mb"]) == ("of_a_user", True, 1.0)
    assert "environment" not in noted


def test_options_that_no_command_knows_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        prance(monkeypatch, "eval", "--agent", "full", "--token-mode", "nobody's")
    assert stop.value.code == 2
    assert "nobody's" in capsys.readouterr().err


def test_help_reads_one_file_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom train.commands.main import parse\n"
        "for words in (['--help'], ['train', '--help'], ['import', '--help']):\n"
        "    try:\n        parse(words)\n    except SystemExit:\n        pass\n"
        "loaded = {'torch', 'stable_baselines3', 'prance_env', 'gymnasium'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", commands())
def test_every_command_that_takes_names_of_a_user_imports_their_modules(name: str) -> None:
    options = {f.name: str(f.type) for f in dataclasses.fields(commands()[name].load())}
    takes_names = {"agent", "environment", "source", "supernet"} & {*options} or "DatasetOption" in str(options)
    assert "imports" in options or not takes_names


@pytest.mark.parametrize("name", commands())
def test_every_command_is_found_by_name_and_told_by_its_docstring(name: str) -> None:
    command = commands()[name]
    kind = command.load()
    assert callable(kind.run)
    assert kind.__doc__ is not None
    assert " ".join(command.summary().split()) == " ".join(kind.__doc__.split("\n\n")[0].split())
    assert entry._found([*name.split(), "--x"]) == (command, name.split())


def test_settings_of_version_0_1_are_compared_with_todays(tmp_path: Path) -> None:
    settings = AgentTraining(n_envs=8, total_timesteps=96)
    (tmp_path / "config.yml").write_text(OLD_CONFIG)
    assert changed_settings(tmp_path, settings) == {}
    for change in ({"device": "meta"}, {"token_mode": "tome"}, {"cache_mb": 3.0}):
        changed = AgentTraining(n_envs=8, total_timesteps=96, environment=change)  # type: ignore[arg-type]
        assert [*changed_settings(tmp_path, changed)] == list(change)
    # A run that was begun with an argument of the environment differs from one without.
    write_command(tmp_path, AgentTraining(environment={"token_mode": "tome"}))
    assert changed_settings(tmp_path, AgentTraining()) == {"token_mode": ("tome", None)}


def test_a_run_of_version_0_1_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_sb3, "ROLLOUTS_PER_STRETCH", 1)
    settings = AgentTraining(n_envs=8, total_timesteps=96)
    whole: Any = train_agent(settings, tmp_path, progress_bar=False)
    (tmp_path / "config.yml").write_text(OLD_CONFIG)
    (tmp_path / "model.zip").unlink()
    again: Any = train_agent(settings, tmp_path, resume=True, progress_bar=False)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name])
    assert load_agent(str(tmp_path), EnvSettings.from_id(split="val")) is not None


@pytest.mark.parametrize("command", ["yardsticks", "benchmark", "tune --algo ppo", "bench-training", "headroom"])
def test_small_efforts_are_what_the_help_says_and_what_is_given_beside_them_wins(command: str, tmp_path: Path) -> None:
    small = commands()[command.split()[0]].load().small.split()
    out = ["--out", str(tmp_path / "out")]
    asked, written = (entry.parse([*command.split(), *out, *w]) for w in (["--effort=small"], ["--effort", "small"]))
    names = [word.removeprefix("--").replace("-", "_") for word in small if word.startswith("--")]
    expected = entry.parse([*command.split(), *out, *small])
    assert [getattr(asked, n) for n in names] == [getattr(expected, n) for n in names]
    assert [getattr(written, n) for n in names] == [getattr(expected, n) for n in names]
    usual = entry.parse([*command.split(), *out])
    assert all(getattr(asked, n) != getattr(usual, n) for n in names)
    given = entry.parse([*command.split(), *out, small[0], "7", "--effort", "small"])
    assert getattr(given, names[0]) in (7, (7,))


def test_whole_numbers_are_typed_in_either_way() -> None:
    words = ["--total-timesteps", "1e5", "--n-envs", "64", "--seed", "3e0"]
    read = entry.parse(["train", "agent", "--out", "new", *words])
    assert (read.total_timesteps, read.n_envs, read.seed) == (100_000, 64, 3)
    assert entry.parse(["bench-menu", "--agent", "x", "--entries", "4", "1e1"]).entries == (4, 10)
    assert entry.parse(["bench", "--batch-size", "1e1", "2"]).batch_sizes == (10, 2)
    assert entry.parse(["bench-menu", "--agent", "x", "--macs-weight", "1", "1e-2"]).macs_weight == (1.0, 0.01)
    assert entry.parse(["video", "--agent", "x", "--images"]).images == ()
