"""A folder of somebody else runs nothing, and has nothing fetched, unless the user says so."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import prance, refusal
from sb3_envs import envs, installed

from agents import make_sb3
from agents.sb3.checkpoint import save_model
from agents.sb3.hyperparams import read_preset
from agents.sb3.policy_file import POLICY, load_policy, save_policy
from prance_env.settings import EnvSettings
from train.commands.main import parse
from train.commands.train_joint import TrainJoint
from train.commands.train_static import TrainStatic
from train.commands.train_supernet import TrainSupernet
from train.deploy import opening
from train.joint import JointSettings
from train.networks.recipes.images import ImagesRecipe
from train.networks.recipes.static import StaticRecipe
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs import trust
from train.runs.folder import write_command

pytestmark = pytest.mark.usefixtures("few_scenes")

OF_TIMM = "timm:vit_tiny_patch16_224"
SHORT = {"n_envs": 4, "n_timesteps": 24, "n_steps": 3, "batch_size": 12, "n_epochs": 1, "policy": "MlpPolicy"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a short training wrote."""
    conf = tmp_path / "ppo.yml"
    conf.write_text(yaml.safe_dump({"default": {**read_preset("ppo").hyperparams, **SHORT}}))
    train_agent(AgentTraining(conf_file=str(conf)), tmp_path / "run", progress_bar=False, save_freq=0)
    return tmp_path / "run"


def of_somebody_else(run: Path) -> None:
    """As if a folder had been unpacked here."""
    system = json.loads((run / "system.json").read_text())
    system["written_by"]["host"] = "elsewhere"
    (run / "system.json").write_text(json.dumps(system))


def advised(words: str) -> list[str]:
    """The options that a refusal tells somebody to paste."""
    return shlex.split(words.partition("say so yourself with ")[2].partition(" if you want that")[0])


def plant(path: Path, marker: Path) -> None:
    """A pickle in SB3's file that leaves a marker when it is read."""
    code = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    data["lr_schedule"] = {":type:": "x", ":serialized:": base64.b64encode(code).decode()}
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_zip_files_of_others_are_not_unpickled_unless_one_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, marker = EnvSettings.from_id(split="val"), tmp_path / "marker"
    for name in ("model.zip", "last.zip"):
        plant(run / name, marker)
    (run / "model.zip").rename(tmp_path / "agent.zip")
    of_somebody_else(run)
    (tmp_path / "agent.zip").rename(run / "model.zip")
    load_agent(str(run), settings)  # by the policy's own file
    (run / POLICY).unlink()
    words = refusal(monkeypatch, "eval", "--agent", run, "--split", "val")
    assert f"{run / 'model.zip'} holds pickled objects" in words
    assert "--trust" in words
    assert "last.zip holds pickled objects" in refusal(monkeypatch, "train", "agent", "--out", run, "--resume")
    with pytest.raises(ValueError, match="holds pickled objects"):
        load_agent(str(run / "model.zip"), settings)
    assert not marker.exists()
    with contextlib.suppress(Exception):  # what is planted is no schedule
        load_agent(str(run), settings, trust=True)
    assert marker.exists()


def test_what_others_have_put_beside_ones_own_file_is_not_unpickled(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (run / POLICY).unlink()
    (run / "vecnormalize.pkl").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    own = trust.is_own
    monkeypatch.setattr(trust, "is_own", lambda file: file.name != "vecnormalize.pkl" and own(file))
    monkeypatch.setattr(opening, "is_own", trust.is_own)
    with pytest.raises(ValueError, match=r"vecnormalize\.pkl holds pickled objects"):
        load_agent(str(run / "model.zip"), EnvSettings.from_id(split="val"))
    with pytest.raises(ValueError, match="Pass trust=True"):
        opening.open_adaptive(str(run), images=0)
    assert not marker.exists()
    with contextlib.suppress(Exception):  # what is planted is no normaliser
        load_agent(str(run / "model.zip"), EnvSettings.from_id(split="val"), trust=True)
    assert marker.exists()


def test_ones_own_files_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / POLICY).unlink()
    load_agent(str(run), EnvSettings.from_id(split="val"))
    train_agent(AgentTraining(conf_file=str(run / "hyperparams.yml"), total_timesteps=48), run, True, False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ValueError, match="holds pickled objects"):
        load_agent(str(run / "model.zip"), EnvSettings.from_id(split="val"))


@pytest.mark.parametrize("algo", ["ppo", "a2c", "sac", "td3", "tqc", "trpo"])
def test_the_policy_in_safetensors_acts_as_the_model(algo: str, tmp_path: Path) -> None:
    model: Any = make_sb3(installed(algo), envs(4), seed=0)
    save_model(model, tmp_path / "model.zip")
    save_policy(model, tmp_path / POLICY, read_preset(algo).hyperparams.get("policy_kwargs") or {})
    policy = load_policy(tmp_path / POLICY)
    rows = np.random.default_rng(0).normal(size=(5, *model.observation_space.shape)).astype(np.float32)
    expected = model.predict(rows, deterministic=True)[0]
    np.testing.assert_array_equal(policy.predict(rows, deterministic=True)[0], expected)
    assert (policy.observation_space, policy.action_space) == (model.observation_space, model.action_space)


def test_a_policy_file_that_is_none_is_refused(tmp_path: Path) -> None:
    model: Any = make_sb3("ppo", envs(4), seed=0)
    save_policy(model, tmp_path / POLICY, {"net_arch": [3]})  # not what it has
    with pytest.raises(ValueError, match=r"policy\.safetensors does not fit this policy: .*shape"):
        load_policy(tmp_path / POLICY)
    (tmp_path / POLICY).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"damaged or not a policy of Stable-Baselines3"):
        load_policy(tmp_path / POLICY)


def test_images_that_nobody_looks_at_are_not_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((run / "config.yml").read_text())
    (run / "config.yml").write_text(yaml.safe_dump({**config, "dataset": "hfds/user/pictures"}))
    of_somebody_else(run)
    opened = opening.open_adaptive(str(run), images=0)
    words = r"would be fetched .*somebody else's: say so yourself with --dataset hfds/user/pictures if you want that"
    with pytest.raises(ValueError, match=words):
        opened.images(1)
    for asked in ({"images": 1}, {"images": 0, "entries": 2}):
        with pytest.raises(ValueError, match=words):
            opening.open_adaptive(str(run), **asked)
    assert opening.open_adaptive(str(run), dataset="digits", images=0).images(1)[1].shape == (1,)


@pytest.mark.parametrize(
    "dataset",
    ["hfds/user/pictures", {"name": "torch/cifar10", "root": "x", "download": True}, "wds/https://x.invalid/shards"],
)
def test_folders_name_no_data_sets_that_would_be_fetched(
    dataset: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((run / "config.yml").read_text())
    (run / "config.yml").write_text(yaml.safe_dump({**config, "dataset": dataset}))
    words = refusal(monkeypatch, "eval", "--agent", run, "--split", "val")
    assert "config.yml names dataset=" in words
    assert "fetched from the network" in words
    assert parse(["eval", "--agent", str(run), *advised(words)]).environment == {"dataset": dataset}
    assert "config.yml" not in refusal(monkeypatch, "eval", "--agent", run, "--split", "val", "--dataset", "no/such")
    of_somebody_else(run)
    assert "somebody else's" in refusal(monkeypatch, "train", "agent", "--out", run, "--resume")

    prance(monkeypatch, "eval", "--agent", "full", "--split", "val", "--out", tmp_path / "eval")
    noted = json.loads((tmp_path / "eval" / "settings.json").read_text())
    (tmp_path / "eval" / "settings.json").write_text(json.dumps({**noted, "dataset": dataset}))
    words = refusal(monkeypatch, "validate", tmp_path / "eval" / "full.csv")
    assert "settings.json names dataset=" in words
    assert parse(["validate", "rows.csv", *advised(words)]).environment == {"dataset": dataset}


@pytest.mark.parametrize(
    ("command", "settings", "named"),
    [
        ("supernet", ImagesRecipe(dataset="hfds/user/pictures"), "dataset='hfds/user/pictures'"),
        ("supernet", ImagesRecipe(source=OF_TIMM), f"source='{OF_TIMM}'"),
        ("supernet", ImagesRecipe(teacher=OF_TIMM, full_teacher=1.0), f"teacher='{OF_TIMM}'"),
        ("static", StaticRecipe(source="net", teacher=OF_TIMM, teacher_weight=1.0), f"teacher='{OF_TIMM}'"),
        ("joint", JointSettings("agent", changes={"dataset": "hfds/user/pictures"}), "dataset='hfds/user/pictures'"),
        ("joint", JointSettings("agent", changes={"teacher": OF_TIMM}), f"teacher='{OF_TIMM}'"),
    ],
)
def test_trainings_of_others_have_nothing_fetched(
    command: str, settings: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_command(tmp_path, settings)
    kind = {"supernet": TrainSupernet, "static": TrainStatic, "joint": TrainJoint}[command]
    assert kind.resumed(tmp_path) is not None, "one's own"
    of_somebody_else(tmp_path)
    words = refusal(monkeypatch, "train", command, "--out", tmp_path, "--resume")
    assert f"config.yml names {named}, which would be fetched from the network" in words
    assert "somebody else's" in words


def test_a_folders_reward_function_is_not_imported_for_evaluation(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\ndef f(o): return o.prob\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = {"function": "planted:f"}
    for name, more in (("config.yml", {"reward": reward}), ("hyperparams.yml", {"env_kwargs": {"reward": reward}})):
        noted = yaml.safe_load((run / name).read_text())
        entry = noted.get("default", noted)
        entry |= more
        (run / name).write_text(yaml.safe_dump(noted))
    prance(monkeypatch, "eval", "--agent", run, "--split", "val", "--out", tmp_path / "eval")
    noted = json.loads((tmp_path / "eval" / "settings.json").read_text())
    (tmp_path / "eval" / "settings.json").write_text(json.dumps({**noted, "reward": reward}))
    prance(monkeypatch, "validate", tmp_path / "eval" / "run.csv")
    assert not (tmp_path / "marker").exists()


def test_a_folder_says_who_wrote_it(tmp_path: Path) -> None:
    write_command(tmp_path, AgentTraining())
    assert set(json.loads((tmp_path / "system.json").read_text())["written_by"]) == {"host", "user"}
